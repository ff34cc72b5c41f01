"""Reads preview images from the volume: only PNG files, and only from the model's own folder."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from sd_api import names
from sd_operator.resources.model import Model

MAX_BYTES = 16 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
_STEP = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


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
    """Return the image, or None if it is missing, too large or not a PNG file.

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
    return data if len(data) <= MAX_BYTES and data.startswith(_PNG) else None


def exists(store: Path, path: str) -> bool:
    """Return whether `read` would find a file; the file's content is not checked."""
    try:
        with ExitStack() as opened:
            return _open(opened, store, path) is not None
    except OSError:
        return False


def _open(opened: ExitStack, store: Path, path: str) -> int | None:
    """Open a regular file below the store, folder by folder; return None if it is not one."""
    names = PurePosixPath(path).parts
    if not names or ".." in names or path.startswith("/"):
        return None
    *folders, file_name = names
    folder = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, folder)
    for name in folders:
        folder = os.open(name, _STEP | os.O_DIRECTORY, dir_fd=folder)
        opened.callback(os.close, folder)
    # Without O_NONBLOCK, opening a FIFO would block this thread for ever.
    file = os.open(file_name, _STEP | os.O_NONBLOCK, dir_fd=folder)
    opened.callback(os.close, file)
    return file if stat.S_ISREG(os.fstat(file).st_mode) else None
