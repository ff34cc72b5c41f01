"""The tiny checkpoints of the tests are realistic: diffusers converts them completely."""

from __future__ import annotations

import pytest
import torch

from devkit.ldm_layouts import (
    REFINER,
    SD2,
    SD15,
    SDXL,
    TINY_REFINER,
    TINY_SD2,
    TINY_SD15,
    TINY_SDXL,
    ema_shapes,
    refiner_shapes,
    sd2_shapes,
    sd15_shapes,
    sdxl_shapes,
)
from tests.support.models.checkpoints import (
    save_ckpt,
    save_safetensors,
    tiny_configs,
    tiny_sd15,
    tiny_sdxl,
)

LEFT_OVER = ("position_ids", "logit_scale")


@pytest.mark.parametrize(
    ("full", "tiny", "count"),
    [
        pytest.param(sd15_shapes(SD15), sd15_shapes(TINY_SD15), 1143, id="SD 1.5"),
        pytest.param(sdxl_shapes(SDXL), sdxl_shapes(TINY_SDXL), 2515, id="SDXL"),
        pytest.param(sd2_shapes(SD2), sd2_shapes(TINY_SD2), 1240, id="SD 2"),
        pytest.param(refiner_shapes(REFINER), refiner_shapes(TINY_REFINER), 1858, id="refiner"),
        pytest.param(ema_shapes(SD15), ema_shapes(TINY_SD15), 688, id="SD 1.5's averages"),
    ],
)
def test_tiny_checkpoint_has_every_key_of_the_published_model(full, tiny, count):
    """The expected counts come from the published files.

    For SD 2 and the refiner, they come from the source code of the model.
    """
    assert len(full) == count
    assert full.keys() == tiny.keys()
    assert all(len(full[name]) == len(shape) for name, shape in tiny.items())


@pytest.mark.parametrize("container", ["safetensors", "ckpt"])
@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_diffusers_converts_a_tiny_checkpoint_completely(tmp_path, architecture, container):
    """The pipeline misses no tensor, and the checkpoint has no unused one."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    make, pipeline_class = {
        "sd15": (tiny_sd15, StableDiffusionPipeline),
        "sdxl": (tiny_sdxl, StableDiffusionXLPipeline),
    }[architecture]
    tensors = make()
    path = tmp_path / f"model.{container}"
    save_safetensors(path, tensors) if container == "safetensors" else save_ckpt(path, tensors)

    pipeline = pipeline_class.from_single_file(
        str(path),
        config=str(tiny_configs(tmp_path / "configs", architecture)),
        local_files_only=True,
        torch_dtype=torch.float16,
    )

    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    parameters = [value for model in models for value in model.parameters()]
    weights = [
        value for name, value in tensors.items() if "." in name and not name.endswith(LEFT_OVER)
    ]
    assert not any(value.is_meta for value in parameters)
    assert sum(value.numel() for value in parameters) == sum(value.numel() for value in weights)
