"""Draws small landscapes as PNG, for models whose pages need a picture.

It uses only numpy and the standard library: the demo has no torch and may lack Pillow.
"""

from __future__ import annotations

import colorsys
import struct
import zlib

import numpy as np

SIZE = 512
_HILLS = 5


def landscape(seed: int, size: int = SIZE) -> bytes:
    """Return a PNG of hills below a sun; the seed decides colours and shapes."""
    numbers = np.random.default_rng(seed)
    hue = float(numbers.random())
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    pixels = _mixed(_colour(hue, 0.55, 0.85), _colour(hue + 0.12, 0.35, 1.0), y)
    distance = np.hypot(x - numbers.uniform(0.25, 0.75), y - numbers.uniform(0.2, 0.4))
    glow = np.clip(1.3 - distance * 8, 0, 1)
    pixels = _mixed(pixels, _colour(hue + 0.15, 0.15, 1.0), glow)
    for hill in range(_HILLS):
        depth = hill / (_HILLS - 1)
        waves = sum(
            numbers.uniform(0.02, 0.06)
            / (wave + 1)
            * np.sin(2 * np.pi * (numbers.uniform(0.6, 1.2) * (wave + 1) * x + numbers.random()))
            for wave in range(4)
        )
        ground = y > 0.45 + 0.12 * hill + waves
        pixels[ground] = _colour(hue - 0.06 * depth, 0.35 + 0.3 * depth, 0.75 - 0.55 * depth)
    return _png((pixels * 255).astype(np.uint8))


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _mixed(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend colours for each pixel: `share` 0 gives `first`, and 1 gives `second`."""
    mixed: np.ndarray = first + (second - first) * share[..., np.newaxis]
    return mixed


def _png(pixels: np.ndarray) -> bytes:
    """Encode rows of RGB pixels."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # A row begins with its filter; 0: none.
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
