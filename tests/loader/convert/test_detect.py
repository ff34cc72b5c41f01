"""A file's tensors show what it is. A message names a file that the loader cannot convert."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devkit.ldm_layouts import (
    TINY_REFINER,
    TINY_SD2,
    TINY_SD15,
    TINY_SDXL,
    refiner_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)
from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader.convert.detect.checkpoint import INPAINTING, INSTRUCT_PIX2PIX, family_of, task_of
from sd_loader.convert.detect.kinds import other_pipeline
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
SD1 = sd15_shapes(TINY_SD15)
SD2 = sd2_shapes(TINY_SD2)
SDXL = sdxl_shapes(TINY_SDXL)
REFINER = refiner_shapes(TINY_REFINER)
PROJECTION = f"{UNET}input_blocks.1.1.proj_in.weight"


def tensors(shapes):
    """Tensors without bytes. A name without a shape gets a default shape."""
    if not isinstance(shapes, dict):
        shapes = dict.fromkeys(shapes, (2, 2))
    return {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        pytest.param(SD1, BaseModelName.SD1, id="SD 1"),
        pytest.param(SD2, BaseModelName.SD2, id="SD 2"),
        pytest.param(SDXL, BaseModelName.SDXL, id="SDXL"),
        pytest.param(REFINER, BaseModelName.SDXL_REFINER, id="refiner"),
    ],
)
def test_supported_checkpoints_are_recognised(shapes, family):
    """The base model is recognised by keys and shapes, with and without a fitting baseModel."""
    assert family_of(tensors(shapes)) is family
    assert family_of(tensors(shapes), family) is family


@pytest.mark.parametrize("shapes", [SD1, SD2, SDXL], ids=["SD 1", "SD 2", "SDXL"])
@pytest.mark.parametrize(("channels", "task"), [(4, None), (9, INPAINTING), (8, INSTRUCT_PIX2PIX)])
def test_input_channels_show_the_task(shapes, channels, task):
    """A UNet with more input channels than the latents is one for inpainting or editing."""
    found = tensors(shapes | {CONV_IN: (32, channels, 3, 3)})
    assert family_of(found) is family_of(tensors(shapes))
    assert task_of(found) == task


def without(shapes, *prefixes):
    """The shapes except those whose names have these prefixes."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        pytest.param(without(SD1, "cond_stage"), BaseModelName.SD1, id="SD 1"),
        pytest.param(without(SD2, "cond_stage"), BaseModelName.SD2, id="SD 2"),
        pytest.param(without(SDXL, "conditioner"), BaseModelName.SDXL, id="SDXL"),
        pytest.param(without(REFINER, "conditioner"), BaseModelName.SDXL_REFINER, id="refiner"),
    ],
)
def test_unet_alone_shows_the_architecture(shapes, found):
    """The base model is recognised from a UNet alone, so missing components can be named."""
    assert family_of(tensors(shapes)) is found


AMBIGUOUS = [
    pytest.param(SD1 | {PROJECTION: (32, 32)}, id="one projection of the other kind"),
    pytest.param(
        without(SD2, "cond_stage") | {n: s for n, s in SD1.items() if n.startswith("cond_stage")},
        id="the other's text encoder",
    ),
]


@pytest.mark.parametrize("shapes", AMBIGUOUS)
def test_ambiguous_file_needs_the_spec(shapes):
    """A file that fits several base models is refused, unless spec.baseModel names one of them."""
    with pytest.raises(LoaderError, match=r"the other of sd-2; set spec\.baseModel") as caught:
        family_of(tensors(shapes))
    assert caught.value.reason is Reason.INVALID_SPEC
    for family in (BaseModelName.SD1, BaseModelName.SD2):
        assert family_of(tensors(shapes), family) is family


def test_checkpoint_without_evidence_is_not_called_ambiguous():
    """The message lists the missing components, which spec.baseModel could not replace."""
    words = "its UNet has no transformers, and it has no text encoder"
    with pytest.raises(LoaderError, match=words) as caught:
        family_of(tensors({CONV_IN: (320, 4, 3, 3)}))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


OTHER_PIPELINES = [
    pytest.param(SDXL | {"edm_mean": (4,)}, "a Playground v2.5 checkpoint", id="Playground"),
    pytest.param(
        SD2 | {CONV_IN: (32, 7, 3, 3), f"{UNET}label_emb.weight": (1000, 128)},
        "an upscaler",
        id="upscaler",
    ),
    pytest.param(["clip_txt_mapper.weight"], "a Stable Cascade model", id="Stable Cascade"),
]


@pytest.mark.parametrize(("shapes", "what"), OTHER_PIPELINES)
def test_model_of_another_pipeline_is_named(shapes, what):
    """The message names the model, and its repo as the remedy."""
    assert other_pipeline(tensors(shapes)) == what
    with pytest.raises(LoaderError, match=f"the file is {what}: use the model's repo") as caught:
        family_of(tensors(shapes))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("shapes", [SD1, SD2, SDXL, REFINER, {}, ["a"]])
def test_unknown_and_convertible_files_are_not_another_pipeline(shapes):
    """`other_pipeline` returns None for them."""
    assert other_pipeline(tensors(shapes)) is None


UNET_ROLES = ("ia3_l", "oft_R", "vera_lambda_b", "vera_lambda_d", "boft_R", "hra_u", "lora_E")
TEXT_ROLES = ("lora_embedding_A", "fourierft_spectrum", "randlora_lambda", "dora_scale", "lokr_w1")
"""UNET_ROLES and TEXT_ROLES: names of tensors that only adapters have, by component."""

REFUSED = [
    pytest.param({}, "empty", id="nothing at all"),
    pytest.param(["a", "b", "c", "d"], "4 tensors are named like a, b, c", id="anything"),
    pytest.param(
        REFINER | {CONV_IN: (32, 9, 3, 3)},
        "an inpainting model of sdxl-refiner",
        id="refiner for inpainting",
    ),
    pytest.param(SD2 | {CONV_IN: (32, 5, 3, 3)}, "a depth-to-image model", id="depth to image"),
    pytest.param(SD1 | {CONV_IN: (32, 7, 3, 3)}, "an upscaler", id="upscaler of another kind"),
    pytest.param(SD1 | {CONV_IN: (32, 6, 3, 3)}, "takes 6 channels", id="other inputs"),
    pytest.param(SD1 | {CONV_IN: ()}, "takes 0 channels", id="no convolution"),
    pytest.param(
        SD2 | {f"{UNET}label_emb.0.0.weight": (128, 2048)}, "Stable unCLIP", id="Stable unCLIP"
    ),
    pytest.param(SDXL | {"edm_vpred.sigma_max": ()}, "CosXL", id="CosXL"),
    pytest.param(
        SD1 | {"control_model.input_hint_block.0.weight": (1,)},
        "a ControlNet: it needs spec.modelType: controlnet",
        id="a ControlNet with its checkpoint",
    ),
    pytest.param(["control_model.time_embed.0.weight"], "controlnet", id="a ControlNet"),
    pytest.param(["controlnet_cond_embedding.conv_in.weight"], "controlnet", id="ControlNet, new"),
    pytest.param(
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
        "a LoRA: it needs spec.modelType: lora",
        id="a LoRA of kohya",
    ),
    pytest.param(
        ["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "a LoRA", id="a LoRA of peft"
    ),
    pytest.param(
        ["double_blocks.0.img_attn.proj.lora_A.weight"], "a LoRA: it needs", id="a LoRA of FLUX"
    ),
    pytest.param(["lora_te1_text_model_encoder.hada_w1_a"], "a LoRA", id="a LyCORIS"),
    pytest.param(["oft_unet_input_blocks_4_1_proj_in.oft_blocks"], "a LoRA", id="an OFT"),
    pytest.param(["lycoris_mid_block_attentions_0_proj_in.on_input"], "a LoRA", id="an IA3"),
    *(
        pytest.param(
            [f"{layer}.{role}"], "the file is a LoRA: it needs spec.modelType: lora", id=role
        )
        for layer, roles in (
            ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k", UNET_ROLES),
            ("text_encoder.text_model.encoder.layers.0.self_attn.k_proj", TEXT_ROLES),
        )
        for role in roles
    ),
    pytest.param(["emb_params"], "spec.modelType: embeddings", id="an embedding"),
    pytest.param(["clip_g", "clip_l"], "spec.modelType: embeddings", id="an SDXL embedding"),
    pytest.param(["<cat-toy>"], "spec.modelType: embeddings", id="a concept"),
    pytest.param(["first_stage_model.encoder.conv_in.weight"], "spec.modelType: vae", id="a VAE"),
    pytest.param(["encoder.mid.block_1.norm1.bias"], "spec.modelType: vae", id="a VAE alone"),
    pytest.param(
        ["decoder.mid_block.resnets.0.norm1.bias"], "spec.modelType: vae", id="a VAE of diffusers"
    ),
    pytest.param(
        ["down_blocks.0.resnets.0.norm1.weight"],
        "diffusers' layout; load its whole repo",
        id="a UNet of diffusers",
    ),
    pytest.param(
        ["encoder.layers.0.layer_norm1.bias"],
        "diffusers' layout; load its whole repo",
        id="a text encoder without text_model",
    ),
    pytest.param(["input_blocks.0.0.weight"], "a UNet without its pipeline", id="a UNet alone"),
    pytest.param(
        ["diffusion_model.input_blocks.0.0.weight"],
        "the file is a UNet without its pipeline; use the whole checkpoint, which has a VAE and a"
        " text encoder, too",
        id="a UNet alone with a prefix",
    ),
    pytest.param(
        ["unet.down_blocks.0.resnets.0.norm1.weight"],
        "the file is a UNet without its pipeline in diffusers' layout; load its whole repo, with"
        " spec.modelType: huggingface",
        id="a UNet of diffusers with a prefix",
    ),
    pytest.param(
        ["transformer_blocks.0.attn.to_q.weight"],
        "the file is a transformer without its pipeline in diffusers' layout; load its whole repo",
        id="a transformer of diffusers",
    ),
    pytest.param(
        ["text_model.encoder.layers.0.mlp.fc1.weight"],
        "the file is a text encoder without its pipeline in diffusers' layout; load its whole repo",
        id="a text encoder",
    ),
    pytest.param(
        ["768.0.linear.0.weight"],
        "the file is a hypernetwork, which is not supported",
        id="a hypernetwork",
    ),
    pytest.param(["768.0.linear1.weight"], "the file is a hypernetwork", id="an early one"),
    pytest.param(["text_encoders_0"], "spec.modelType: embeddings", id="pivotal tuning"),
    pytest.param(["clip_l_out"], "spec.modelType: embeddings", id="OneTrainer's output"),
    pytest.param(["string_to_param.cat"], "spec.modelType: embeddings", id="a named embedding"),
    pytest.param(
        ["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
        "motion module",
        id="AnimateDiff",
    ),
    pytest.param(["image_proj.latents"], "an IP-Adapter", id="IP-Adapter"),
]


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_unsupported_file_is_refused_and_named(shapes, message):
    """The message names what the file is. Diffusers would treat an unknown file as SD 1."""
    with pytest.raises(LoaderError) as caught:
        family_of(tensors(shapes))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert message in caught.value.message


def test_wrong_base_model_is_refused():
    """A spec.baseModel that contradicts the file is refused."""
    with pytest.raises(LoaderError, match=r"spec\.baseModel is sdxl.* of sd-1") as caught:
        family_of(tensors(SD1), BaseModelName.SDXL)
    assert caught.value.reason is Reason.INVALID_SPEC


NAMES = st.text(max_size=40) | st.sampled_from([name for name in SD1 if name != CONV_IN][::50])
SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@given(st.dictionaries(NAMES, SHAPES, max_size=6))
def test_any_unknown_file_is_refused_readably(shapes):
    """The message is short and printable."""
    with pytest.raises(LoaderError) as caught:
        family_of(tensors(shapes))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
