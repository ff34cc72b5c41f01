"""Reads the images of models from the volume, each only from the model's own folder.

A model may have a preview, which was rendered with it, and a picture, which its source shows.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from sd_api import names
from sd_operator.resources.model import Model

MAX_BYTES = 16 * 2**20
MEDIA_TYPES = {names.PREVIEW_FILE: "image/png", names.PICTURE_FILE: "image/jpeg"}
"""The media types by file name. The preview is shown first."""
_MAGIC = {names.PREVIEW_FILE: b"\x89PNG\r\n\x1a\n", names.PICTURE_FILE: b"\xff\xd8\xff"}
_STEP = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    """Return the image. None if it is missing, too large, or not of the type of its name.

    It follows no symbolic link, because a link could lead out of the store.
    """
    try:
        with ExitStack() as opened:
            file = _open(opened, store, path)
            if file is None:
                return None
            data = b""
            while len(data) <= MAX_BYTES and (more := os.read(file, MAX_BYTES + 1 - len(data))):
                data += more
    except OSError:
        return None
    is_image = data.startswith(_MAGIC[PurePosixPath(path).name])
    return data if len(data) <= MAX_BYTES and is_image else None


def exists(store: Path, path: str) -> bool:
    """Return whether `read` would find a file; the file's content is not checked."""
    try:
        with ExitStack() as opened:
            return _open(opened, store, path) is not None
    except OSError:
        return False


def _open(opened: ExitStack, store: Path, path: str) -> int | None:
    """Open a regular file below the store, folder by folder; return None if it is not one."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        return None
    *folders, file_name = parts
    folder = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, folder)
    for name in folders:
        folder = os.open(name, _STEP | os.O_DIRECTORY, dir_fd=folder)
        opened.callback(os.close, folder)
    # Without O_NONBLOCK, opening a FIFO would block this thread for ever.
    file = os.open(file_name, _STEP | os.O_NONBLOCK, dir_fd=folder)
    opened.callback(os.close, file)
    return file if stat.S_ISREG(os.fstat(file).st_mode) else None
