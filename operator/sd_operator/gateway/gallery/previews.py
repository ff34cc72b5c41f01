"""Reads the images of models from the volume, each only from the model's own folder.

A model may have a preview, which was rendered with it, and a picture, which its source shows.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sd_api import names
from sd_operator.gateway.gallery import volume
from sd_operator.resources.model import Model

MAX_BYTES = 16 * 2**20
MEDIA_TYPES = {names.PREVIEW_FILE: "image/png", names.PICTURE_FILE: "image/jpeg"}
"""The media types by file name. The preview is shown first."""
_MAGIC = {names.PREVIEW_FILE: b"\x89PNG\r\n\x1a\n", names.PICTURE_FILE: b"\xff\xd8\xff"}


def paths(model: Model) -> dict[str, str]:
    """Return the paths on the volume of a model's images, by file name, in the order of display.

    An image is left out if the status does not have it, or has a path outside the model's own
    folder.
    """
    artifact = model.status.artifact
    if artifact is None:
        return {}
    stated = {
        names.PREVIEW_FILE: (artifact.preview_path, names.preview_path),
        names.PICTURE_FILE: (artifact.picture_path, names.picture_path),
    }
    return {
        name: path
        for name, (path, expected) in stated.items()
        if path is not None and path == expected(model.uid, artifact.load_hash)
    }


def read(store: Path, path: str) -> bytes | None:
    """Return the image. None if it is missing, too large, or not of the type of its name."""
    data = volume.read(store, path, MAX_BYTES)
    is_image = data is not None and data.startswith(_MAGIC[PurePosixPath(path).name])
    return data if is_image else None


def exists(store: Path, path: str) -> bool:
    """Return whether the file exists; its size and content are not checked."""
    return volume.exists(store, path)
