"""All hostile files by kind and name."""

from __future__ import annotations

from tests.support.hostile import (
    archives,
    bombs,
    calls,
    legacy,
    opcodes,
    others,
    safetensorsfiles,
    zips,
)
from tests.support.hostile.samples import Samples

KINDS: dict[str, Samples] = {
    "calls": calls.SAMPLES,
    "opcodes": opcodes.SAMPLES,
    "zips": zips.SAMPLES,
    "legacy": legacy.SAMPLES,
    "safetensors": safetensorsfiles.SAMPLES,
    "archives": archives.SAMPLES,
    "bombs": bombs.SAMPLES,
    "others": others.SAMPLES,
}
