"""If diffusers does not read an adapter, the loader refuses it, and the message names its kind."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import refuse_other_adapters
from sd_loader.convert.plan.lora import plan_lora
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.adapters import lora, opened, save
from tests.support.models.conversions import conversion

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
KOHYA = f"lora_unet_{BLOCK.replace('.', '_')}"
ORIGINAL = "input_blocks.4.1.transformer_blocks.0.attn1.to_k"
EMPTY = Tensor(-1, Dtype.U8, (0,), 0)
LAYER = torch.randn(4, 64)
ONE = torch.tensor(1.0)

LYCORIS = "a LyCORIS of the kind"
PEFT = "a PEFT adapter of the kind"
DIFFERENCES = "a LyCORIS with full differences of weights"
COMFYUI = "a LoRA with ComfyUI's names, which diffusers does not read"


def under(prefix: str, *names: str, tensor: torch.Tensor = LAYER) -> dict[str, torch.Tensor]:
    """Return a layer's tensors: `tensor` under the prefix and each of the names."""
    return {f"{prefix}.{name}": tensor for name in names}


def with_lora(*names: str, **beside: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a LoRA in kohya's style. Each layer also has `names`, and the file has `beside`."""
    tensors = lora("sd15", "kohya", text=False) | beside
    layers = [name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")]
    return tensors | {f"{layer}.{name}": ONE for layer in layers for name in names}


# Rows with a LoRA are functions, so that only their tests make the pipeline that has its shapes.
KINDS = [
    (under(KOHYA, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), f"{LYCORIS} LoHa"),
    (under(KOHYA, "lokr_w1", "lokr_w2_a", "lokr_w2_b"), f"{LYCORIS} LoKr"),
    (under(KOHYA, "weight", "on_input"), f"{LYCORIS} IA3"),
    (under(KOHYA, "oft_blocks", tensor=torch.randn(4, 2, 2)), f"{LYCORIS} OFT"),
    (under(KOHYA, "oft_diag", "rescale"), f"{LYCORIS} OFT"),
    (under(KOHYA, "oft_blocks", tensor=torch.randn(3, 4, 2, 2)), f"{LYCORIS} BOFT"),
    (under(KOHYA, "a1.weight", "a2.weight", "b1.weight", "b2.weight"), f"{LYCORIS} GLoRA"),
    (under(KOHYA, "q_layer.weight", "p_layer.weight", "lambda_layer"), f"{LYCORIS} T-LoRA"),
    (under(KOHYA, "up_list.0", "down_list.0"), f"{LYCORIS} DyLoRA"),
    (under(f"oft_unet_{ORIGINAL.replace('.', '_')}", "oft_blocks"), "an OFT of sd-scripts"),
    (
        under(
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
            ".attention_blocks.0.to_q",
            "lora.down.weight",
            "lora.up.weight",
        ),
        "a motion LoRA of AnimateDiff",
    ),
    (
        under("lora_unet_up_blocks_1_motion_modules_0_proj_in", "lora_down.weight"),
        "a motion LoRA of AnimateDiff",
    ),
    (partial(with_lora, "scalar"), "a LyCORIS with trained scalars (use_scalar)"),
    (
        partial(with_lora, "lora_mid.weight"),
        "a LyCORIS with a Tucker decomposition (lora_mid)",
    ),
    (
        partial(with_lora, "bias_indices", "bias_values", "bias_size"),
        "a LyCORIS with sparse biases",
    ),
    (partial(with_lora, **under("lora_unet_conv_out", "diff", "diff_b")), DIFFERENCES),
    (partial(with_lora, **under("lora_unet_conv_norm_out", "w_norm", "b_norm")), DIFFERENCES),
    (
        under(f"lycoris_{BLOCK.replace('.', '_')}", "lora_up.weight", "lora_down.weight"),
        "a LyCORIS with names of its own (lycoris_…), which diffusers does not read",
    ),
    (under(f"diffusion_model.{ORIGINAL}", "lora_up.weight", "lora_down.weight"), COMFYUI),
    (
        under(
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
            "lora_up.weight",
            "lora_down.weight",
        ),
        COMFYUI,
    ),
    (under("clip_l.encoder.layers.0.mlp.fc1", "lora_A.weight", "lora_B.weight"), COMFYUI),
    (under(f"unet.{BLOCK}", "ia3_l"), f"{PEFT} IA3"),
    (under(f"unet.{BLOCK}", "oft_R"), f"{PEFT} OFT"),
    (under(f"base_model.model.{BLOCK}", "boft_R", "boft_s"), f"{PEFT} BOFT"),
    (under(f"unet.{BLOCK}", "vera_lambda_b", "vera_lambda_d"), f"{PEFT} VeRA"),
    (under(f"unet.{BLOCK}", "lora_A.weight", "lora_B.weight", "lora_E"), f"{PEFT} AdaLoRA"),
    (
        {f"unet:{number}:{half}": LAYER for number in range(2) for half in ("up", "down")},
        "a LoRA of the program lora_diffusion",
    ),
    (
        under("lora_unet_double_blocks_0_img_mlp_fc1", "lora_up.weight", "lora_down.weight"),
        "a LoRA of HunyuanVideo",
    ),
    (
        under("lora_unet_joint_blocks_0_x_block_mlp_fc1", "lora_up.weight", "lora_down.weight"),
        "a LoRA of Stable Diffusion 3",
    ),
    (
        under("lora_unet_double_layers_0_attn_w1q", "lora_up.weight", "lora_down.weight"),
        "a LoRA of AuraFlow",
    ),
]


EACH_KIND = pytest.mark.parametrize(
    ("tensors", "what"), KINDS, ids=[what for _, what in KINDS], indirect=["tensors"]
)


@pytest.fixture
def tensors(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, which are made here if the row has a function."""
    made = request.param
    return made() if callable(made) else made


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reversed"])
@EACH_KIND
def test_another_kind_of_adapter_is_named_in_any_order(tensors, what, reverse):
    """The message names the kind of adapter in any order of the tensors."""
    found = {
        name: Tensor(-1, Dtype.F32, tuple(tensor.shape), 0)
        for name, tensor in sorted(tensors.items(), reverse=reverse)
    }
    file = TensorFile(Path("x"), -1, "safetensors", found)
    with pytest.raises(LoaderError) as caught:
        plan_lora(file, conversion(model_type="lora"))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    message, _, seen = caught.value.message.partition(" (seen: ")
    assert message == (
        f"the file is {what}; supported are LoRAs of sd-1, sd-2, sdxl, sd-3, flux, flux2, chroma,"
        " qwen-image, z-image, wan and lumina2 with names that diffusers reads"
    )
    assert seen.partition(")")[0] in tensors


@pytest.mark.parametrize(
    ("role", "remedy"),
    [
        ("hada_w1_a", "spec.lora.expandLycoris: true publishes this one as a LoRA of higher rank"),
        ("lokr_w2_a", "spec.lora.expandLycoris: true publishes this one as a LoRA of higher rank"),
        ("lokr_w2", "merge it into a checkpoint with the program that trained it, or train a LoRA"),
        ("hada_t1", "merge it into a checkpoint with the program that trained it, or train a LoRA"),
        (
            "on_input",
            "merge it into a checkpoint with the program that trained it, or train a LoRA",
        ),
    ],
)
def test_a_message_ends_with_the_remedy(role, remedy):
    """The message ends with a remedy, which differs for kinds that can be expanded to a LoRA."""
    file = TensorFile(Path("x"), -1, "safetensors", {f"{KOHYA}.{role}": EMPTY})
    with pytest.raises(LoaderError) as caught:
        plan_lora(file, conversion(model_type="lora"))
    assert caught.value.message.endswith(f"): {remedy}")


@EACH_KIND
def test_diffusers_does_not_read_the_adapter_either(tmp_path, tensors, what):
    """Diffusers fails, or it leaves the adapter out and only warns."""
    path = save(tmp_path, {name: tensor.clone() for name, tensor in tensors.items()})
    with contextlib.suppress(ValueError, KeyError, IndexError, RuntimeError):
        assert not opened("sd15", str(path)), what


def test_many_names_take_little_time():
    """70,000 short names and 8,000 names of many parts take less than 2 s of CPU time."""
    short = {f"{number:x}": EMPTY for number in range(70_000)}
    parts = {f"{'a.' * 230}{number}": EMPTY for number in range(8_000)}
    start = time.process_time()
    for tensors in (short, parts):
        refuse_other_adapters(tensors)
    assert time.process_time() - start < 2
