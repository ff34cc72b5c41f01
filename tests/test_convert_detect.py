"""What a file is, is told by its tensors; what cannot be converted is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldm_layouts import TINY_SD15, TINY_SDXL, sd15_shapes, sdxl_shapes

from sd_api.reasons import Reason
from sd_api.spec import BaseModelName
from sd_loader.convert.detect import detect
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
SD1 = sd15_shapes(TINY_SD15)
SDXL = sdxl_shapes(TINY_SDXL)


def tensors(shapes):
    """Tensors without bytes; a name alone has some shape."""
    if not isinstance(shapes, dict):
        shapes = dict.fromkeys(shapes, (2, 2))
    return {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        pytest.param(SD1, BaseModelName.SD1, id="SD 1"),
        pytest.param(SDXL, BaseModelName.SDXL, id="SDXL"),
    ],
)
def test_supported_checkpoints_are_recognised(shapes, found):
    """By their keys and shapes; saying it as well does no harm."""
    assert detect(tensors(shapes)) is found
    assert detect(tensors(shapes), found) is found


REFUSED = [
    pytest.param({}, "empty", id="nothing at all"),
    pytest.param(["a", "b", "c", "d"], "4 tensors are named like a, b, c", id="anything"),
    pytest.param(SD1 | {CONV_IN: (32, 9, 3, 3)}, "an inpainting model", id="inpainting"),
    pytest.param(SDXL | {CONV_IN: (32, 9, 3, 3)}, "an inpainting model", id="SDXL inpainting"),
    pytest.param(SD1 | {CONV_IN: (32, 8, 3, 3)}, "an instruct-pix2pix model", id="pix2pix"),
    pytest.param(SD1 | {CONV_IN: (32, 6, 3, 3)}, "takes 6 channels", id="other inputs"),
    pytest.param(SD1 | {CONV_IN: ()}, "takes 0 channels", id="no convolution"),
    pytest.param(SD1 | {f"{UNET}input_blocks.1.1.proj_in.weight": (32, 32)}, "of sd2", id="SD 2"),
    pytest.param(
        SDXL | {f"{UNET}input_blocks.9.0.op.weight": (1,)}, "of sdxl-refiner", id="refiner"
    ),
    pytest.param(SDXL | {"edm_mean": (4,)}, "Playground", id="Playground"),
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
    pytest.param(["lora_te1_text_model_encoder.hada_w1_a"], "a LoRA", id="a LyCORIS"),
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
    pytest.param(["input_blocks.0.0.weight"], "a UNet without its pipeline", id="a UNet alone"),
    pytest.param(["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX", id="FLUX"),
    pytest.param(["joint_blocks.0.x_block.attn.qkv.weight"], "Diffusion 3", id="SD 3"),
    pytest.param(
        ["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
        "motion module",
        id="AnimateDiff",
    ),
    pytest.param(["image_proj.latents"], "an IP-Adapter", id="IP-Adapter"),
]


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_anything_else_is_refused_by_name(shapes, message):
    """Never taken for SD 1, as diffusers takes what it does not know."""
    with pytest.raises(LoaderError) as caught:
        detect(tensors(shapes))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert message in caught.value.message


def test_a_wrong_base_model_is_refused():
    """spec.baseModel completes what the file says, and cannot contradict it."""
    with pytest.raises(LoaderError, match=r"spec\.baseModel is sdxl.* of sd1") as caught:
        detect(tensors(SD1), BaseModelName.SDXL)
    assert caught.value.reason is Reason.INVALID_SPEC


NAMES = st.text(max_size=40) | st.sampled_from([name for name in SD1 if name != CONV_IN][::50])
SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, SHAPES, max_size=6))
def test_hostile_files_are_refused_readably(shapes):
    """Whatever the names and shapes: one line, no control characters, bounded."""
    with pytest.raises(LoaderError) as caught:
        detect(tensors(shapes))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
