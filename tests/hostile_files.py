"""All hostile files, by the kind of trick and its name."""

from __future__ import annotations

import hostile_archives
import hostile_bombs
import hostile_calls
import hostile_legacy
import hostile_opcodes
import hostile_others
import hostile_safetensors
import hostile_zips
from hostile_sample import Samples

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
