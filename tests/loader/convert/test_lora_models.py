"""If a LoRA does not load, the message names its model, in every style of layer names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.lora_kinds import refuse_other_adapters
from sd_loader.convert.plan.lora import plan_lora
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile

KOHYA = ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "lora_unet_{}.alpha")
AI_TOOLKIT = ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight")
PEFT = ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
BARE = ("{}.lora_A.weight", "{}.lora_B.weight")
XLABS = ("{}.down.weight", "{}.up.weight")
ALONE = ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")
ONE_TRAINER = ("lora_transformer_{}.lora_down.weight", "lora_transformer_{}.lora_up.weight")

FLUX_BLOCK = "transformer_blocks.18.attn.to_q"
QWEN_BLOCK = "transformer_blocks.59.attn.to_q"

MODELS = [
    ("FLUX.1", KOHYA, "double_blocks_0_img_attn_qkv", 3072),
    ("FLUX.1", KOHYA, "single_blocks_37_linear1", 3072),
    ("FLUX.1", AI_TOOLKIT, "double_blocks.0.img_attn.qkv", 3072),
    ("FLUX.1", PEFT, "single_transformer_blocks.0.attn.to_q", 3072),
    ("FLUX.1", XLABS, "double_blocks.0.processor.qkv_lora1", 3072),
    ("FLUX.1", BARE, "double_blocks.0.img_attn.proj", 3072),
    ("FLUX.1", BARE, "single_transformer_blocks.0.proj_mlp", 3072),
    ("FLUX.1", ALONE, "single_transformer_blocks.0.proj_mlp", 3072),
    ("FLUX.1", ONE_TRAINER, "single_transformer_blocks_0_attn_to_k", 3072),
    ("FLUX.1 or Qwen-Image", PEFT, FLUX_BLOCK, 3072),
    ("FLUX.2", AI_TOOLKIT, "double_stream_modulation_img.lin", 6144),
    ("FLUX.2", PEFT, "single_transformer_blocks.0.attn.to_qkv_mlp_proj", 6144),
    ("FLUX.2", BARE, "transformer_blocks.0.ff_context.linear_in", 6144),
    ("Chroma", KOHYA, "distilled_guidance_layer_layers_0_in_layer", 5120),
    ("Stable Diffusion 3", KOHYA, "joint_blocks_0_x_block_attn_qkv", 1536),
    ("Stable Diffusion 3", PEFT, "transformer_blocks.0.attn.add_q_proj", 1536),
    ("Stable Diffusion 3", BARE, "transformer_blocks.0.attn.to_q", 2432),
    ("Qwen-Image", KOHYA, "transformer_blocks_0_img_mlp_net_0_proj", 3072),
    ("Qwen-Image", KOHYA, QWEN_BLOCK.replace(".", "_"), 3072),
    ("Qwen-Image", PEFT, QWEN_BLOCK, 3072),
    ("Qwen-Image", AI_TOOLKIT, "transformer_blocks.0.txt_mod.1", 3072),
    ("Z-Image", AI_TOOLKIT, "layers.0.attention.qkv", 3840),
    ("Z-Image", AI_TOOLKIT, "layers.0.adaLN_modulation.0", 256),
    ("Z-Image", KOHYA, "layers_0_attention_to_q", 3840),
    ("Lumina 2", KOHYA, "layers_0_attention_qkv", 2304),
    ("Lumina 2", PEFT, "layers.0.attn.to_q", 2304),
    ("Wan", KOHYA, "blocks_0_self_attn_q", 5120),
    ("Wan", AI_TOOLKIT, "blocks.0.cross_attn.k_img", 5120),
    ("Wan or a model of its kind", PEFT, "blocks.0.attn1.to_q", 5120),
    ("HunyuanVideo", KOHYA, "double_blocks_0_img_mlp_fc1", 3072),
    ("HunyuanVideo", KOHYA, "double_blocks_0_img_mod_linear", 3072),
    ("HunyuanVideo", KOHYA, "single_blocks_0_modulation_linear", 3072),
    ("HunyuanVideo", AI_TOOLKIT, "double_blocks.0.img_attn_qkv", 3072),
    ("HunyuanVideo", BARE, "double_blocks.0.txt_attn_proj", 3072),
    ("HunyuanVideo", PEFT, "single_blocks.39.modulation.linear", 3072),
    ("AuraFlow", PEFT, "joint_transformer_blocks.0.attn.to_q", 3072),
    ("HiDream", PEFT, "double_stream_blocks.0.block.attn1.to_q", 2560),
    ("another model", PEFT, "patch_embed.proj", 1920),
    ("another model", KOHYA, "layers_0_mixer", 1920),
]


LYCORIS = [
    ("double_blocks_0_img_attn_qkv.hada_w1_a", "a LyCORIS of the kind LoHa"),
    ("double_blocks_0_img_attn_qkv.lokr_w1", "a LyCORIS of the kind LoKr"),
    ("double_blocks_0_img_mlp_0.on_input", "a LyCORIS of the kind IA3"),
    ("double_blocks_0_img_mlp_0.oft_blocks", "a LyCORIS of the kind OFT"),
    ("double_blocks_0_img_mlp_0.dora_scale", "a DoRA in kohya's style"),
]


@pytest.mark.parametrize(("name", "what"), LYCORIS, ids=[what for _, what in LYCORIS])
def test_another_kind_of_adapter_is_named_before_its_model(name, what):
    """The message names the kind of adapter, not its model: it would not load for any model."""
    names = [template.format("double_blocks_0_img_attn_qkv") for template in KOHYA]
    tensors = {
        key: Tensor(-1, Dtype.F16, (4, 3072), 0) for key in (*names[:2], f"lora_unet_{name}")
    }
    with pytest.raises(LoaderError, match=what):
        plan_lora(
            TensorFile(Path("x"), -1, "safetensors", tensors), Conversion(ModelType.LORA, "x")
        )


def half_shapes(width: int) -> list[tuple[int, ...]]:
    """Shapes of a down matrix, an up matrix and an alpha, in this order."""
    return [(4, width), (width, 4), ()]


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize(
    ("model", "style", "layer", "width"), MODELS, ids=[f"{row[0]} {row[2]}" for row in MODELS]
)
def test_the_model_of_a_refused_lora_is_named_in_any_style(model, style, layer, width, reverse):
    """The message names the model, in each style: with any prefix and separator of names."""
    names = [template.format(layer) for template in style]
    pairs = list(zip(names, half_shapes(width)[: len(names)], strict=True))
    tensors = {
        name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in pairs[:: -1 if reverse else 1]
    }
    with pytest.raises(LoaderError) as caught:
        refuse_other_adapters(tensors)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message.startswith(f"the file is a LoRA of {model}; ")
    assert any(f"(seen: {name})" in caught.value.message for name in names)
