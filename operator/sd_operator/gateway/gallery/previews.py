"""Rendered previews, read from the volume: PNG files only, and nothing outside of its folder."""

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
    """Where a model's preview lies on the volume, if it says so and lies in its own folder."""
    artifact = model.status.artifact
    if artifact is None or artifact.preview_path is None:
        return None
    expected = names.preview_path(model.uid, artifact.load_hash)
    return expected if artifact.preview_path == expected else None


def read(store: Path, path: str) -> bytes | None:
    """The image; None where there is none that can be shown. No link is followed."""
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
    """Whether read would find a file, which need not be an image."""
    try:
        with ExitStack() as opened:
            return _open(opened, store, path) is not None
    except OSError:
        return False


def _open(opened: ExitStack, store: Path, path: str) -> int | None:
    """A regular file, opened folder by folder beneath the store."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        return None
    *folders, name = parts
    folder = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, folder)
    for part in folders:
        folder = os.open(part, _STEP | os.O_DIRECTORY, dir_fd=folder)
        opened.callback(os.close, folder)
    # Without O_NONBLOCK a FIFO would hold the thread for ever.
    file = os.open(name, _STEP | os.O_NONBLOCK, dir_fd=folder)
    opened.callback(os.close, file)
    return file if stat.S_ISREG(os.fstat(file).st_mode) else None
