"""The name and the format of a source that is a single file."""

from __future__ import annotations

from pathlib import Path

from sd_loader.formats.sniff import HEAD_BYTES, Container, identify

FILE_NAME = "download"


def file_format(path: Path) -> str:
    """Return a model file's format as status.source.format has it."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    container = identify(head, path.stat().st_size)
    return "safetensors" if container is Container.SAFETENSORS else "ckpt"
