"""A faulty LoRA is refused with a message that names the fault, and nothing is written."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from tests.support.models.adapters import loaded, lora, opened, trained

UNSUPPORTED, CONTRADICTS = Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED


def refusal(tmp_path, tensors, metadata=None, **fields) -> LoaderError:
    """Return the error of a LoRA. Assert that it is refused, and that nothing is written."""
    with pytest.raises(LoaderError) as caught:
        loaded(tmp_path, tensors, metadata, **fields)
    assert not list((tmp_path / "out").iterdir())
    assert caught.value.message.isprintable()
    return caught.value


def changed(tensors, ending, make):
    """The tensors, but the first one with this ending is replaced by the result of `make`."""
    name = next(name for name in tensors if name.endswith(ending))
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    return rest | make(name, tensors[name])


def kohya():
    """A valid LoRA of a UNet in kohya's style."""
    return lora("sd15", "kohya", text=False)


ATTENTION = "attn2_to_k.lora_down.weight"
ZERO = torch.zeros(4, 4)

REFUSED = [
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda _n, _t: {}),
        CONTRADICTS,
        "lacks",
        id="no down matrix",
    ),
    pytest.param(
        lambda: changed(kohya(), "attn2_to_k.lora_up.weight", lambda _n, _t: {}),
        CONTRADICTS,
        "lacks its lora_B.weight (or lora_up)",
        id="no up matrix",
    ),
    pytest.param(
        lambda: kohya() | {"lora_unet_mid_block_attentions_9_proj_in.alpha": torch.tensor(1.0)},
        CONTRADICTS,
        "alpha alone",
        id="an alpha alone",
    ),
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda n, t: {n: t[:-1]}),
        CONTRADICTS,
        "do not form a matrix of low rank",
        id="ranks",
    ),
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda n, t: {n: t[:, 1:].clone()}),
        CONTRADICTS,
        "in sd-1 the layer down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v is [32, 63]",
        id="width",
    ),
    pytest.param(
        lambda: changed(kohya(), ATTENTION, lambda n, t: {n: t.to(torch.int32)}),
        CONTRADICTS,
        "should hold floating-point numbers, but its type is ",
        id="integers",
    ),
    pytest.param(
        lambda: changed(kohya(), ".alpha", lambda n, _t: {n: torch.ones(2)}),
        CONTRADICTS,
        "should be one number",
        id="two alphas",
    ),
    pytest.param(
        lambda: kohya() | dict.fromkeys(["lora_unet_x.lora_down.weight"], ZERO),
        CONTRADICTS,
        "lacks",
        id="half of an unknown layer",
    ),
    pytest.param(
        lambda: (
            kohya()
            | {f"lora_unet_x.lora_{half}.weight": torch.zeros(4, 4) for half in ("down", "up")}
        ),
        CONTRADICTS,
        "the UNet of sd-1 has no layer for lora_unet_x",
        id="unknown layer",
    ),
    pytest.param(lambda: kohya() | {"x": ZERO}, UNSUPPORTED, "named like x", id="unknown key"),
    pytest.param(
        lambda: kohya() | lora("sd15", "peft", text=False), UNSUPPORTED, "mixes", id="mixed styles"
    ),
    pytest.param(
        lambda: lora("sdxl", "kohya") | lora("sdxl", "kohya sgm"),
        UNSUPPORTED,
        "in two ways",
        id="two namings",
    ),
    pytest.param(
        lambda: {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": ZERO},
        UNSUPPORTED,
        "LoHa",
        id="LoHa",
    ),
    pytest.param(lambda: kohya() | {"lora_unet_x.lokr_w1": ZERO}, UNSUPPORTED, "LoKr", id="LoKr"),
    pytest.param(
        lambda: kohya() | {"lora_unet_x.dora_scale": ZERO}, UNSUPPORTED, "dora_scale", id="DoRA"
    ),
    pytest.param(
        lambda: kohya() | {"bundle_emb.x.string_to_param.*": ZERO},
        UNSUPPORTED,
        "embeddings in it",
        id="bundle",
    ),
    pytest.param(
        lambda: {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": ZERO},
        CONTRADICTS,
        "lacks",
        id="half of FLUX",
    ),
    pytest.param(
        lambda: {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": ZERO},
        CONTRADICTS,
        "lacks its lora_B.weight",
        id="half of FLUX in PEFT's style",
    ),
    pytest.param(
        lambda: {"transformer.double_stream_blocks.0.block.attn1.to_q.lora_A.weight": ZERO},
        UNSUPPORTED,
        "a LoRA of HiDream",
        id="HiDream",
    ),
    pytest.param(
        lambda: {"transformer.patch_embed.proj.lora_A.weight": ZERO},
        UNSUPPORTED,
        "a LoRA of another model",
        id="another transformer",
    ),
    pytest.param(
        lambda: {"base_model.model.mid_block.attentions.0.proj_in.lora_A.weight": ZERO},
        UNSUPPORTED,
        "adapter_config.json",
        id="PEFT alone",
    ),
    pytest.param(
        lambda: (
            lora("sd15", "diffusers", text=False)
            | {"unet.mid_block.attentions.0.proj_in.alpha": torch.tensor(1.0)}
        ),
        UNSUPPORTED,
        "alphas in diffusers' style",
        id="alphas that diffusers leaves out",
    ),
    pytest.param(
        lambda: {"model.diffusion_model.input_blocks.0.0.weight": ZERO},
        UNSUPPORTED,
        "a checkpoint: it needs spec.modelType: custom_ckpt",
        id="a checkpoint",
    ),
    pytest.param(
        lambda: {"<cat>": torch.zeros(1, 768)},
        UNSUPPORTED,
        "it needs spec.modelType: embeddings",
        id="an embedding",
    ),
    pytest.param(
        lambda: {"control_model.time_embed.0.weight": ZERO},
        UNSUPPORTED,
        "it needs spec.modelType: controlnet",
        id="a ControlNet",
    ),
    pytest.param(
        lambda: {
            name: tensor
            for name, tensor in lora("sd15", "kohya").items()
            if name.startswith("lora_te_") and "q_proj" in name
        },
        UNSUPPORTED,
        "does not read these layers of the text_encoder",
        id="text layers that diffusers ignores",
    ),
]


@pytest.mark.parametrize(("make", "reason", "message"), REFUSED)
def test_faulty_lora_is_refused(tmp_path, make, reason, message):
    """The message names the tensor or the format, and nothing is written."""
    error = refusal(tmp_path, make())
    assert error.reason is reason
    assert message in error.message


@pytest.fixture(scope="module")
def with_metadata(tmp_path_factory):
    """The layers and the metadata of a LoRA that the loader accepts."""
    _, layers, config = trained()
    layers = {f"unet.{name}": tensor for name, tensor in layers.items()}
    config["target_modules"] = sorted(config["target_modules"])
    plain = {f"unet.{key}": value for key, value in config.items() if key != "peft_type"}
    folder = tmp_path_factory.mktemp("good")
    assert loaded(folder, layers, {"lora_adapter_metadata": json.dumps(plain)})
    return layers, plain


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"unet.megatron_core": "os"}, Reason.UNSAFE_MODEL, "megatron_core"),
        ({"unet.init_lora_weights": "eva"}, Reason.UNSAFE_MODEL, "init_lora_weights"),
        ({"unet.target_modules": "(a+)+$"}, Reason.UNSAFE_MODEL, "target_modules"),
        ({"unet.rank_pattern": {"(a+)+$": 4}}, Reason.UNSAFE_MODEL, "rank_pattern"),
        ({"unet.lora_alpha": math.inf}, Reason.UNSAFE_MODEL, "lora_alpha"),
        ({"unet.r": 16}, CONTRADICTS, "the rank 16"),
    ],
    ids=["a module to import", "files to read", "pattern", "patterns", "no number", "another rank"],
)
def test_harmful_metadata_is_refused(tmp_path, with_metadata, change, reason, message):
    """A LoRA whose metadata would make a harmful PEFT configuration is refused."""
    layers, plain = with_metadata
    text = json.dumps({**plain, **change})
    error = refusal(tmp_path, layers, {"lora_adapter_metadata": text})
    assert error.reason is reason
    assert message in error.message


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000], ids=["cut", "[]", "x", "deep"])
def test_metadata_that_is_not_a_json_object_is_refused(tmp_path, text):
    """The LoRA is refused: diffusers would fail to load it with this lora_adapter_metadata."""
    error = refusal(tmp_path, lora("sd15", "peft", text=False), {"lora_adapter_metadata": text})
    assert error.reason is CONTRADICTS


@pytest.mark.parametrize(
    "text",
    ['{"x":[' + "[]," * 400_000 + "0]}", '{"x":"' + "x" * (8 << 20) + '"}'],
    ids=["more than is parsed", "more than is kept"],
)
def test_too_long_metadata_is_refused(tmp_path, text):
    """A PEFT configuration has a few kilobytes.

    A long one is not parsed, because nested lists need 44 times their length in memory. It is not
    dropped either, because the LoRA would then have another scale.
    """
    error = refusal(tmp_path, lora("sd15", "peft", text=False), {"lora_adapter_metadata": text})
    assert error.reason is Reason.UNSUPPORTED_FORMAT
    assert error.message == "lora_adapter_metadata is too long"


STYLES = ("kohya", "old diffusers", "diffusers", "peft")
TEXT_LAYERS = {
    "a query alone": ("q_proj", "to_q"),
    "a query and its output": ("q_proj", "to_q", "out"),
    "a query and the rest of the layer": ("q_proj", "to_q", "mlp"),
    "the rest of the layer": ("mlp",),
    "the last projection": ("text_projection",),
}
CASES = [(style, kept) for style in STYLES for kept in [*TEXT_LAYERS][:-1]]
CASES.remove(("old diffusers", "the rest of the layer"))  # old diffusers did not train these layers
CASES.append(("kohya", "the last projection"))  # only kohya trains this layer


def is_slow(style, kept):
    """Whether only `make test-all` runs the case.

    `make test` runs all cases of kohya's style, and one of each other style.
    """
    return style != "kohya" and kept != "a query alone"


@pytest.mark.parametrize(
    ("style", "kept"),
    [pytest.param(*case, marks=pytest.mark.slow if is_slow(*case) else ()) for case in CASES],
)
def test_text_layers_are_refused_if_and_only_if_diffusers_ignores_them(tmp_path, style, kept):
    """A LoRA with only some layers is published exactly if diffusers reads all of them.

    Diffusers detects the style from a few names. Without them it fails or skips layers.
    """
    tensors = {
        name: tensor
        for name, tensor in lora("sdxl", style).items()
        if "unet" not in name and any(part in name for part in TEXT_LAYERS[kept])
    }
    assert tensors
    halves = [name for name in tensors if name.endswith(("down.weight", "lora_A.weight"))]
    try:
        read = len([name for name in opened("sdxl", tensors) if name.endswith("scale")])
    except ValueError:
        read = 0
    if read == len(halves):
        assert loaded(tmp_path, tensors)
    else:
        assert "diffusers does not read these layers" in refusal(tmp_path, tensors).message
