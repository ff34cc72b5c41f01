"""CLIP, the text encoder of every Stable Diffusion model: tensor names and vocabulary."""

from __future__ import annotations

import gzip

from sd_loader.convert.tables.architecture import DATA

VOCABULARY_FILES = ("vocab.json", "merges.txt")

_PREFIX = "text_model"
_UNPREFIXED = ("embeddings", "encoder", "final_layer_norm")


def with_prefix(name: str, separator: str = ".") -> str:
    """A tensor's name with the prefix `text_model.`, if it belongs to the transformer.

    Early fine-tunes were saved by a version of transformers that left the prefix out, and
    transformers since 5.6 leaves it out again. If the prefix is missing, a version that expects it
    uses random weights.

    separator: the text between the parts of the name: an underscore in kohya's LoRAs.
    """
    if name.startswith(tuple(f"{part}{separator}" for part in _UNPREFIXED)):
        return f"{_PREFIX}{separator}{name}"
    return name


def vocabulary_file(name: str) -> bytes:
    """Return vocab.json or merges.txt, byte for byte as in the repos of models."""
    return gzip.decompress((DATA / "clip" / f"{name}.gz").read_bytes())
