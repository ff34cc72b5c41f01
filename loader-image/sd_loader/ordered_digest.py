"""The SHA-256 of a file whose bytes arrive in any order."""

from __future__ import annotations

import hashlib
import os
from bisect import insort

from sd_loader.bulk import PIECE_BYTES, write_at
from sd_loader.storage_errors import storage_errors


class OrderedSha256:
    """Digests bytes in the order of the file.

    Bytes that arrive before the bytes in front of them are kept in a sparse file, at their
    positions.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._sha256 = hashlib.sha256()
        self._end = 0
        self._kept: list[tuple[int, int]] = []

    def keep(self, start: int, end: int) -> None:
        """Record that the sparse file has the bytes from `start` to `end`."""
        insort(self._kept, (start, end))

    def kept(self) -> list[tuple[int, int]]:
        """Return the ranges of the sparse file that are not digested yet, in their order."""
        return list(self._kept)

    def add(self, position: int, content: memoryview) -> None:
        """Digest bytes, or keep them until the bytes in front of them come."""
        self._catch_up()
        end = position + content.nbytes
        if position > self._end:
            with storage_errors("the download"):
                write_at(self._fd, content, position)
            self.keep(position, end)
        elif end > self._end:
            self._sha256.update(content[self._end - position :])
            self._end = end

    def hexdigest(self) -> str:
        """Return the file's digest, in lower-case hex. Raise RuntimeError if bytes are missing."""
        self._catch_up()
        if self._end != self._size:
            raise RuntimeError(f"{self._size - self._end} bytes of the source did not come")
        return self._sha256.hexdigest()

    def _catch_up(self) -> None:
        """Digest the kept bytes that follow the digested ones without a gap."""
        while self._kept and self._kept[0][0] <= self._end:
            _, end = self._kept.pop(0)
            while self._end < end:
                piece = os.pread(self._fd, min(PIECE_BYTES, end - self._end), self._end)
                if not piece:
                    raise RuntimeError(f"the sparse file ends at byte {self._end}")
                self._sha256.update(piece)
                self._end += len(piece)
