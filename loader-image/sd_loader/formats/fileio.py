"""Reads an open file by position. Continues a short read; a file that ends early is an error."""

from __future__ import annotations

import os

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError


def read_at(fd: int, offset: int, count: int) -> bytes:
    """Read exactly `count` bytes from `offset`. Raise DamagedFile if the file ends earlier."""
    pieces = []
    while count:
        piece = os.pread(fd, count, offset)
        if not piece:
            raise LoaderError(Reason.DAMAGED_FILE, f"truncated: it ends at byte {offset}")
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return b"".join(pieces)
