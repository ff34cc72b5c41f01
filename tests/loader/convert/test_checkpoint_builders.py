"""The tiny checkpoints of the tests have the structure of the published models."""

from __future__ import annotations

import pytest

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
    """The expected counts of SD 1.5 and SDXL come from the published files.

    Those of SD 2 and the refiner come from the source code of the models.
    """
    assert len(full) == count
    assert full.keys() == tiny.keys()
    assert all(len(full[name]) == len(shape) for name, shape in tiny.items())
