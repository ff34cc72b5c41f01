"""For a file with a transformer, the loader names the family and the missing components."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from sd_api.reasons import Reason
from sd_loader.convert.detect.checkpoint import family_of
from sd_loader.convert.detect.transformers import PREFIXES, transformer_of
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.tables.transformers import TABLES, load_transformer
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.conversions import conversion
from tests.support.models.transformershapes import original_shapes

FAMILIES = sorted(path.stem for path in TABLES.glob("*.json"))
SAME_NAMES = {"hidream", "qwen-image"}
INSTEAD = (
    ": name a diffusers repo that gives the other components in spec.components.from, or have the"
    " administrator set one for the family in SD_OPERATOR_LOADER_DEFAULT_PARTS"
    " (SD_LOADER_DEFAULT_PARTS by hand)"
)


def tensors(*names: str) -> dict[str, Tensor]:
    """Return tensors of these names, without bytes."""
    return {name: Tensor(-1, Dtype.BF16, (1,), 0) for name in names}


def published_names(family: str, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file of the family in diffusers' layout."""
    rows = load_transformer(family).component(original_shapes(family)).rows
    return tensors(*(prefix + row.target for row in rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_with_a_table_is_detected(family: str) -> None:
    """The family is detected in its original layout and in diffusers', with each prefix."""
    for prefix in ("", *PREFIXES):
        original = transformer_of(tensors(*original_shapes(family, prefix)))
        published = transformer_of(published_names(family, prefix))
        for found in (original, published):
            assert found is not None
            assert (found.family.table, found.prefix) == (family, prefix)
            assert found.is_alone
            is_other = found is published and family not in SAME_NAMES
            assert found.is_in_diffusers_layout is is_other


UNET = "model.diffusion_model."
ENCODER = "text_encoders.t5xxl.transformer.shared.weight"
VAE = "first_stage_model.encoder.conv_in.weight"
NAMED = [
    pytest.param(
        ("joint_blocks.0.x_block.attn.qkv.weight",),
        "the transformer of Stable Diffusion 3, without its text encoders and VAE",
        id="SD 3",
    ),
    pytest.param(
        (f"{UNET}joint_blocks.0.x_block.attn.ln_q.weight",),
        "the transformer of Stable Diffusion 3.5, without its text encoders and VAE",
        id="SD 3.5",
    ),
    pytest.param(
        (f"{UNET}double_blocks.0.img_attn.qkv.weight",),
        "the transformer of FLUX.1, without its text encoders and VAE",
        id="FLUX.1",
    ),
    pytest.param(
        (f"{UNET}double_blocks.0.img_attn.qkv.weight", ENCODER),
        "a file of FLUX.1, without its VAE",
        id="FLUX.1 with text encoders",
    ),
    pytest.param(
        ("double_blocks.0.img_attn.qkv.weight", ENCODER, VAE),
        "the pipeline of FLUX.1 in one file",
        id="the whole FLUX.1",
    ),
    pytest.param(
        ("double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"),
        "the transformer of FLUX.2, without its text encoder and VAE",
        id="FLUX.2 is not FLUX.1",
    ),
    pytest.param(
        ("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"),
        "the transformer of Chroma, without its text encoder and VAE",
        id="Chroma is not FLUX.1",
    ),
    pytest.param(
        ("double_blocks.0.img_attn.qkv.weight", "txt_in.individual_token_refiner.blocks.0.x"),
        "the transformer of HunyuanVideo, without its text encoders and VAE",
        id="HunyuanVideo is not FLUX.1",
    ),
    pytest.param(
        ("cap_embedder.0.weight", "layers.0.adaLN_modulation.0.weight"),
        "the transformer of Z-Image, without its text encoder and VAE",
        id="Z-Image is not Lumina 2",
    ),
    pytest.param(
        ("cap_embedder.0.weight", "layers.0.adaLN_modulation.1.weight"),
        "the transformer of Lumina 2, without its text encoder and VAE",
        id="Lumina 2",
    ),
    pytest.param(
        ("transformer_blocks.0.img_mod.1.weight",),
        "the transformer of Qwen-Image, without its text encoder and VAE",
        id="Qwen-Image",
    ),
    pytest.param(
        ("double_stream_blocks.0.block.attn1.to_q.weight",),
        "the transformer of HiDream, without its text encoders and VAE",
        id="HiDream",
    ),
    pytest.param(
        (f"{UNET}patchify_proj.weight", "vae.encoder.x"),
        "a file of LTX-Video, without its text encoder",
        id="LTX with its VAE",
    ),
    pytest.param(
        ("head.modulation", "vace_blocks.0.after_proj.bias"),
        "the transformer of Wan VACE, without its text encoder and VAE",
        id="Wan VACE is not Wan",
    ),
    pytest.param(
        ("single_transformer_blocks.0.proj_mlp.weight", "transformer_blocks.0.attn.to_q.weight"),
        "the transformer of FLUX.1 in diffusers' layout, without its text encoders and VAE",
        id="FLUX.1 of diffusers",
    ),
]


@pytest.mark.parametrize(("names", "what"), NAMED)
def test_family_and_missing_components_are_named(names: tuple[str, ...], what: str) -> None:
    """The message names the family and the missing components, in any order of the tensors."""
    for order in (names, names[::-1]):
        assert str(transformer_of(tensors(*order))) == what


def test_transformer_as_a_checkpoint_is_refused_with_the_remedy() -> None:
    """The message names the file, the missing components, and how to supply them.

    For a family without a key table, such as Wan VACE, the remedy is the model's repo.
    """
    with pytest.raises(LoaderError) as caught:
        family_of(tensors("head.modulation"))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    what = "the file is the transformer of Wan, without its text encoder and VAE"
    assert caught.value.message == what + INSTEAD
    with pytest.raises(LoaderError, match="VAE: use the model's repo in diffusers' layout"):
        family_of(tensors("head.modulation", "vace_blocks.0.after_proj.bias"))


@pytest.mark.parametrize("name", ["x", "blocks.0.attn.qkv.weight", "model.head.modulation", ""])
def test_other_files_have_no_transformer_of_a_family(name: str) -> None:
    """A family's tensor name does not count if other words stand before it."""
    assert transformer_of(tensors(name)) is None


CONTROLNETS = [
    ("FLUX.1", ("controlnet_x_embedder.bias", "single_transformer_blocks.0.proj_mlp.bias")),
    ("FLUX.1", ("controlnet_blocks.0.bias", "double_blocks.0.img_attn.qkv.bias")),
    ("Stable Diffusion 3", ("controlnet_blocks.0.bias", "pos_embed_input.proj.weight")),
    ("Qwen-Image", ("controlnet_blocks.0.bias", "transformer_blocks.0.img_mod.1.bias")),
    ("Sana", ("controlnet_blocks.0.bias", "transformer_blocks.0.ff.conv_inverted.bias")),
]


@pytest.mark.parametrize(("family", "names"), CONTROLNETS)
def test_a_controlnet_is_not_taken_for_its_transformer(family: str, names: tuple[str, ...]) -> None:
    """A ControlNet has tensors with its transformer's names, and is refused with each model type.

    The message is always the same.
    """
    file = TensorFile(Path("net"), -1, "safetensors", tensors(*names))
    for wanted in ("custom_ckpt", "controlnet", "vae", "lora", "embeddings"):
        with ExitStack() as stack, pytest.raises(LoaderError) as caught:
            plan_file(file, conversion(model_type=wanted), OpenFiles(stack))
        assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
        assert caught.value.message == (
            f"the file is a ControlNet of {family}, which diffusers reads only with its config; use"
            " its repo in diffusers' layout, with spec.modelType: controlnet"
        )
