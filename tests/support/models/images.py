"""How far two renderings of the same weights may differ, and the check of it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

TOLERANCE = 1e-4
"""On an image's range, 0 to 1: a fortieth of what a PNG can show.

The order in which floating-point numbers are added depends on the processor's vector width and on
where the weights lie in memory, so equal weights do not give equal bits: 4e-6 was measured with
AVX2 and without AVX-512.
"""

PNG_TOLERANCE = 1
"""On a PNG's range, 0 to 255: TOLERANCE can move a value from one integer to the next."""


def assert_same_image(one: np.ndarray, other: np.ndarray) -> None:
    """Two images, as diffusers returns them, are the same within TOLERANCE."""
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= TOLERANCE


def same_png(one: bytes, other: bytes) -> bool:
    """Whether two PNGs of one size show the same within PNG_TOLERANCE."""
    pixels = [np.asarray(Image.open(io.BytesIO(png)), np.int16) for png in (one, other)]
    return int(np.abs(pixels[0] - pixels[1]).max()) <= PNG_TOLERANCE
