"""A picture for a model without an image: shapes and colours that follow from its name. Pure.

The same model always has the same picture, so people recognise it in a long list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

WIDTH, HEIGHT = 120, 90
_CIRCLES = 5
_SPREAD = 90
"""Maximum distance of a circle's hue from the hue of the ground, in degrees."""


@dataclass(frozen=True)
class Circle:
    """A coloured circle."""

    x: int
    y: int
    radius: int
    hue: int


@dataclass(frozen=True)
class Art:
    """A picture: coloured circles on a ground of a similar colour."""

    hue: int
    circles: tuple[Circle, ...]


@lru_cache(maxsize=4096)
def art(name: str) -> Art:
    """Return the picture for a model's name."""
    numbers = hashlib.sha256(name.encode()).digest()
    hue = numbers[0] * 360 // 256
    rows = (numbers[start : start + 4] for start in range(1, 1 + 4 * _CIRCLES, 4))
    return Art(
        hue,
        tuple(
            Circle(
                x=x * WIDTH // 256,
                y=y * HEIGHT // 256,
                radius=22 + radius % 24,
                hue=(hue + shift * _SPREAD // 256) % 360,
            )
            for x, y, radius, shift in rows
        ),
    )
