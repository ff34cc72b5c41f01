"""Opens files beneath the mounted volume without following links, which could lead out of it."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

_STEP = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def read(store: Path, path: str, max_bytes: int) -> bytes | None:
    """Return the content of a regular file. None if it cannot be read or exceeds `max_bytes`."""
    try:
        with ExitStack() as opened:
            file = _open(opened, store, path)
            if file is None:
                return None
            data = b""
            while len(data) <= max_bytes and (more := os.read(file, max_bytes + 1 - len(data))):
                data += more
    except OSError:
        return None
    return data if len(data) <= max_bytes else None


def exists(store: Path, path: str) -> bool:
    """Return whether there is a regular file; its content is not checked."""
    try:
        with ExitStack() as opened:
            return _open(opened, store, path) is not None
    except OSError:
        return False


def _open(opened: ExitStack, store: Path, path: str) -> int | None:
    """Open a file below the store, folder by folder; return None if it is not a regular file."""
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
