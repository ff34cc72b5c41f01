"""The base model of a LoRA is detected from its layers.

The reference is the real models at full size, without weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.plan.lora import plan_lora
from sd_loader.convert.plan.lora_families import FAMILIES, modules
from sd_loader.convert.tables.dimensions import matches
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.conversions import conversion

SD1, SD2, SDXL = FAMILIES
UNETS = {
    SD1: {"cross_attention_dim": 768},
    SD2: {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    SDXL: {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
    },
}
TEXTS = {
    SD1: {"text_encoder": (768, 12, CLIPTextModel)},
    SD2: {"text_encoder": (1024, 23, CLIPTextModel)},
    SDXL: {
        "text_encoder": (768, 12, CLIPTextModel),
        "text_encoder_2": (1280, 32, CLIPTextModelWithProjection),
    },
}


def real_layers(family):
    """The shapes of all matrices and convolutions of the family's models, by component and name."""
    with torch.device("meta"):
        models = {"unet": UNet2DConditionModel(**UNETS[family])}
        for name, (width, depth, kind) in TEXTS[family].items():
            config = CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=depth,
                num_attention_heads=width // 64,
                projection_dim=width,
            )
            models[name] = kind(config)
    found = {}
    for component, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                is_layer = component != "unet" and name != "text_projection"
                path = f"text_model.{name.removeprefix('text_model.')}" if is_layer else name
                found[component, path] = tuple(module.weight.shape)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_known_layers_equal_those_of_the_real_models(family):
    """The loader's table has the names and shapes of all layers of the real models."""
    real = real_layers(family)
    known = {(component, module.name): module for (component, _), module in modules(family).items()}
    assert known.keys() == real.keys()
    dimensions = {}
    for key in sorted(real, key=lambda key: "+" in known[key].shape):
        pattern = known[key].shape
        if "+1536" in pattern:
            assert dimensions["text_encoder_2_projection"] + 1536 == real[key][1]
        assert matches(pattern, real[key], dimensions), key


@pytest.mark.parametrize("family", FAMILIES)
def test_kohya_names_mean_the_same_layers_as_in_diffusers(family):
    """Diffusers converts each name to the layer that the loader expects."""
    for (component, name), module in modules(family).items():
        if component != "unet" or "." in name:
            continue
        tensors = {f"lora_unet_{name}.lora_{half}.weight": torch.ones(1) for half in ("down", "up")}
        if family is SDXL:
            config = type("Config", (), {"layers_per_block": 2})
            tensors = _maybe_map_sgm_blocks_to_diffusers(tensors, config)
        tensors, _ = _convert_non_diffusers_lora_to_diffusers(tensors)
        renamed = convert_unet_state_dict_to_peft(
            {key.removeprefix("unet."): value for key, value in tensors.items()}
        )
        assert {key.split(".lora_")[0] for key in renamed} == {module.name}, name


def file_of(tensors, metadata=None):
    """Return a file whose tensors have shapes but no data."""
    return TensorFile(Path("x"), -1, "safetensors", tensors, metadata or {})


def halves(names, inputs, outputs, style="unet.{}.lora_{}.weight", words=("A", "B")):
    """The two matrices of each layer. If `inputs` is a tuple, the layer is a convolution."""
    down = (4, *inputs) if isinstance(inputs, tuple) else (4, inputs)
    up = (outputs, 4, 1, 1) if isinstance(inputs, tuple) else (outputs, 4)
    return {
        style.format(name, word): Tensor(-1, Dtype.F16, shape, 0)
        for name in names
        for word, shape in zip(words, (down, up), strict=True)
    }


def cross(width, block="down_blocks.1.attentions.0", outputs=640):
    """A LoRA of one cross-attention layer."""
    return halves([f"{block}.transformer_blocks.0.attn2.to_k"], width, outputs)


SELF_ATTENTION = halves(["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"], 640, 640)
TEXT = [f"text_model_encoder_layers_0_self_attn_{part}_proj" for part in ("q", "k", "v", "out")]
KOHYA_TE = "lora_te{}_{{}}.lora_{{}}.weight"


def text(number, width):
    """A kohya LoRA of a text encoder."""
    return halves(TEXT, width, width, KOHYA_TE.format(number), ("down", "up"))


@pytest.mark.parametrize(
    ("tensors", "metadata", "found"),
    [
        pytest.param(cross(768), {}, SD1, id="cross attention of SD 1"),
        pytest.param(cross(1024), {}, SD2, id="cross attention of SD 2"),
        pytest.param(cross(2048), {}, SDXL, id="cross attention of SDXL"),
        pytest.param(SELF_ATTENTION, {}, None, id="self attention"),
        pytest.param(
            SELF_ATTENTION, {"ss_base_model_version": "sdxl_base_v1-0"}, SDXL, id="kohya's metadata"
        ),
        pytest.param(
            SELF_ATTENTION,
            {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
            SD2,
            id="modelspec metadata",
        ),
        pytest.param(
            cross(768),
            {"ss_base_model_version": "sdxl_base_v1-0"},
            SD1,
            id="layers before metadata",
        ),
        pytest.param(text("", 768), {}, SD1, id="text encoder of SD 1"),
        pytest.param(text("", 1024), {}, SD2, id="text encoder of SD 2"),
        pytest.param(text("1", 768), {}, SDXL, id="first text encoder of SDXL"),
        pytest.param(text("2", 1280), {}, SDXL, id="second text encoder of SDXL"),
        pytest.param(
            halves(["mid_block.attentions.0.proj_in"], (1280, 1, 1), 1280), {}, SD1, id="projection"
        ),
        pytest.param(
            halves(["down_blocks.3.resnets.0.conv1"], (1280, 3, 3), 1280), {}, None, id="4th level"
        ),
    ],
)
def test_base_model_is_detected_from_layers_and_widths(tensors, metadata, found):
    """A LoRA that fits several base models is published with a warning to set spec.baseModel."""
    plan = plan_lora(file_of(tensors, metadata), conversion(model_type="lora"))
    assert plan.base_model == found
    assert any("set spec.baseModel" in warning for warning in plan.warnings) == (not found)


@pytest.mark.parametrize("base_model", [SD1, SD2, SDXL])
def test_spec_may_choose_among_the_fitting_base_models(base_model):
    """If a LoRA fits several base models, spec.baseModel decides, without a warning."""
    options = conversion(model_type="lora", base_model=base_model)
    plan = plan_lora(file_of(SELF_ATTENTION), options)
    assert (plan.base_model, plan.warnings) == (base_model, ())


@pytest.mark.parametrize(
    ("tensors", "base_model", "reason", "message"),
    [
        (cross(768), SDXL, Reason.INVALID_SPEC, "is sdxl, but the file is a LoRA of sd-1"),
        (SELF_ATTENTION, BaseModelName.SDXL_REFINER, Reason.INVALID_SPEC, "sd-1 or sd-2 or sdxl"),
        (cross(1280), None, Reason.CONVERSION_FAILED, "widths are of sdxl-refiner"),
        (cross(768) | text("2", 1280), None, Reason.UNSUPPORTED_FORMAT, "mixes"),
        (
            cross(768) | cross(2048, "down_blocks.2.attentions.0", 1280),
            None,
            Reason.CONVERSION_FAILED,
            "",
        ),
        (
            cross(768) | cross(768, "down_blocks.2.attentions.0", 320),
            None,
            Reason.CONVERSION_FAILED,
            "are 640, 320 wide",
        ),
        (
            halves(["down_blocks.9.resnets.0.conv1"], 640, 640),
            SD2,
            Reason.CONVERSION_FAILED,
            "the UNet of sd-2 has no layer",
        ),
    ],
    ids=["another", "refiner", "width", "styles", "two widths", "out of line", "layer"],
)
def test_contradictions_are_refused(tensors, base_model, reason, message):
    """A LoRA is refused if the spec contradicts it, or if its layers contradict each other."""
    with pytest.raises(LoaderError) as caught:
        plan_lora(file_of(tensors), conversion(model_type="lora", base_model=base_model))
    assert caught.value.reason is reason
    assert message in caught.value.message


PARTS = st.sampled_from(
    [
        *("unet.", "lora_unet_", "lora_te_", "text_encoder.", "conv_in", "attn1.to_q", "x", "*"),
        *("down_blocks.1.attentions.0.transformer_blocks.0.", "processor.", "to_q_lora"),
        *(".lora_A.weight", ".lora_B.bias", ".lora.down.weight", ".lora_up.weight", ".alpha"),
        ".lora_magnitude_vector",
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=7).map("".join)
REAL = [*cross(768), *text("", 768), *SELF_ATTENTION, "lora_unet_conv_in.alpha", "unet.conv_in.x"]
SHAPES = st.lists(st.sampled_from([0, 1, 4, 320, 640, 768]), max_size=4).map(tuple)
TENSORS = st.builds(Tensor, st.just(-1), st.sampled_from(Dtype), SHAPES, st.just(0))
METADATA = st.dictionaries(
    st.sampled_from(["lora_adapter_metadata", "ss_base_model_version", "x"]),
    st.sampled_from(["{}", "[1]", '{"r": 4}', '{"unet.r": 4}', '{"unet.r": {}}', "nonsense", ""]),
)


@given(
    st.dictionaries(NAMES | st.sampled_from(REAL) | st.text(max_size=9), TENSORS, max_size=8),
    st.booleans(),
    METADATA,
)
def test_any_file_is_planned_or_refused(tensors, with_a_lora, metadata):
    """An error message is short and printable."""
    if with_a_lora:
        tensors = {**cross(768), **tensors}
    message = None
    try:
        plan_lora(file_of(tensors, metadata), conversion(model_type="lora"))
    except LoaderError as error:
        message = error.message
    assert message is None or (message.isprintable() and len(message) < 512)
