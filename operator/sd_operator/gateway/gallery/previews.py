"""Reads preview images from the volume: only PNG files, and only from the model's own folder."""

from __future__ import annotations

from pathlib import Path

from sd_api import names
from sd_operator.gateway.gallery import volume
from sd_operator.resources.model import Model

MAX_BYTES = 16 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


def preview_path(model: Model) -> str | None:
    """Return the path of a model's preview on the volume.

    Return None if the status has no preview, or a path outside the model's own folder.
    """
    artifact = model.status.artifact
    if artifact is None or artifact.preview_path is None:
        return None
    expected = names.preview_path(model.uid, artifact.load_hash)
    return expected if artifact.preview_path == expected else None


def read(store: Path, path: str) -> bytes | None:
    """Return the image, or None if it is missing, too large or not a PNG file."""
    data = volume.read(store, path, MAX_BYTES)
    return data if data is not None and data.startswith(_PNG) else None


def exists(store: Path, path: str) -> bool:
    """Return whether `read` would find a file; the file's content is not checked."""
    return volume.exists(store, path)
