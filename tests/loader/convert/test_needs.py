"""The names and shapes of a file's tensors show what else the load needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from devkit.ldm_layouts import TINY_SD2, TINY_SD15, TINY_SDXL, sd2_shapes, sd15_shapes, sdxl_shapes
from sd_api.choices import BaseModelName
from sd_loader.convert.detect.transformers import transformer_of
from sd_loader.convert.plan.needs import Needs, needs
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.models.conversions import conversion

SD1, SD2, SDXL = sd15_shapes(TINY_SD15), sd2_shapes(TINY_SD2), sdxl_shapes(TINY_SDXL)
NO_VAE = "first_stage_model."
WAN = {"head.modulation": (1,)}
HUNYUAN = {"txt_in.individual_token_refiner.blocks.0.x": (1,)}
SD35_LARGE = {f"joint_blocks.{block}.x_block.mlp.fc1.weight": (9728, 2432) for block in (0, 37)}


def file_of(shapes):
    """Return a file whose tensors have shapes but no data."""
    tensors = {name: Tensor(-1, Dtype.F16, shape, 0) for name, shape in shapes.items()}
    return TensorFile(Path("model"), -1, "safetensors", tensors)


def alone(family, shapes):
    """Return the needs of a file with only a transformer: a repo must supply the rest."""
    found = transformer_of(file_of(shapes).tensors)
    return Needs(family=family, transformer=found, whole_file=True)


def without(shapes, *prefixes):
    """The shapes without those whose names have these prefixes."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("shapes", "fields", "expected"),
    [
        pytest.param(SD1, {}, Needs(BaseModelName.SD1), id="a whole checkpoint"),
        pytest.param(SD2, {}, Needs(BaseModelName.SD2), id="a whole SD 2"),
        pytest.param(
            without(SDXL, NO_VAE), {}, Needs(BaseModelName.SDXL, ("vae",)), id="without a VAE"
        ),
        pytest.param(
            without(SDXL, NO_VAE),
            {"vae": {"url": "org/vae"}},
            Needs(BaseModelName.SDXL),
            id="with spec.vae",
        ),
        pytest.param(
            without(SDXL, NO_VAE, "conditioner."),
            {},
            Needs(BaseModelName.SDXL, ("text_encoder", "text_encoder_2", "vae")),
            id="a UNet alone",
        ),
        pytest.param(
            without(SD1, "cond_stage_model."),
            {"model_type": "huggingface"},
            Needs(BaseModelName.SD1, ("text_encoder",)),
            id="a checkpoint in a repo",
        ),
        pytest.param(without(SD1, NO_VAE), {"model_type": "vae"}, Needs(), id="not a pipeline"),
        pytest.param(SD35_LARGE, {"model_type": "lora"}, Needs(), id="an adapter of another model"),
        pytest.param(
            SD35_LARGE,
            {},
            alone("sd-3", SD35_LARGE),
            id="a transformer alone",
        ),
        pytest.param(WAN, {}, alone("wan", WAN), id="a transformer of Wan alone"),
        pytest.param(HUNYUAN, {}, Needs(), id="a transformer without a table"),
        pytest.param({"x": (1,)}, {}, Needs(), id="not a model"),
        pytest.param(SD1, {"base_model": "sdxl"}, Needs(), id="the spec contradicts the file"),
    ],
)
def test_file_needs_its_missing_components(shapes, fields, expected):
    """Each row has a file and its `Needs`. A file that cannot be converted needs nothing."""
    found = needs(file_of(shapes), conversion(**fields))
    assert found == expected
