"""The largest difference allowed between two renderings of the same weights, and its check."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

TOLERANCE = 1e-4
"""The limit for images with values from 0 to 1: a fortieth of the smallest step of a PNG.

The order in which floating-point numbers are added depends on the processor's vector width and on
where the weights lie in memory, so equal weights do not give equal bits: 4e-6 was measured with
AVX2 and without AVX-512.
"""

PNG_TOLERANCE = 1
"""The limit for PNGs with values from 0 to 255: TOLERANCE can change the rounding of a value."""


def assert_same_image(one: np.ndarray, other: np.ndarray) -> None:
    """Check that two images from diffusers are equal within TOLERANCE."""
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= TOLERANCE


def same_png(one: bytes, other: bytes) -> bool:
    """Return whether two PNGs of one size are equal within PNG_TOLERANCE."""
    pixels = [np.asarray(Image.open(io.BytesIO(png)), np.int16) for png in (one, other)]
    return int(np.abs(pixels[0] - pixels[1]).max()) <= PNG_TOLERANCE
