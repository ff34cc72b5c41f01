"""All hostile files, by the kind of trick and its name."""

from __future__ import annotations

from tests.support.hostile import (
    hostile_archives,
    hostile_bombs,
    hostile_calls,
    hostile_legacy,
    hostile_opcodes,
    hostile_others,
    hostile_safetensors,
    hostile_zips,
)
from tests.support.hostile.hostile_sample import Samples

KINDS: dict[str, Samples] = {
    "calls": hostile_calls.SAMPLES,
    "opcodes": hostile_opcodes.SAMPLES,
    "zips": hostile_zips.SAMPLES,
    "legacy": hostile_legacy.SAMPLES,
    "safetensors": hostile_safetensors.SAMPLES,
    "archives": hostile_archives.SAMPLES,
    "bombs": hostile_bombs.SAMPLES,
    "others": hostile_others.SAMPLES,
}
