"""BLAKE3, the digest of all published files. No other module imports the package blake3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping

from blake3 import blake3

from sd_loader.bulk import PIECE_BYTES

Blake3 = blake3
"""A class with `update` and `hexdigest`, like the classes of hashlib."""


def blake3_of(content: bytes) -> str:
    """Return the BLAKE3 of bytes, in lower-case hex."""
    return Blake3(content).hexdigest()


def blake3_of_file(fd: int) -> str:
    """Return the BLAKE3 of a file that was just opened, in lower-case hex."""
    digest = Blake3()
    _read(fd, digest.update)
    return digest.hexdigest()


def both_digests_of_file(fd: int) -> tuple[str, str]:
    """Return the BLAKE3 and the SHA-256 of a file that was just opened, in lower-case hex."""
    blake3, sha256 = Blake3(), hashlib.sha256()
    _read(fd, blake3.update, sha256.update)
    return blake3.hexdigest(), sha256.hexdigest()


def _read(fd: int, *updates: Callable[[memoryview], object]) -> None:
    """Read a file once, and pass each piece to all functions."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := os.readv(fd, [buffer]):
        for update in updates:
            update(buffer[:count])


def folder_digest(files: Mapping[str, str]) -> str:
    """Return `blake3:` and the BLAKE3 of a list with a line `<blake3>  <path>` for each file.

    The lines are sorted by path, and are the lines that b3sum prints. files: the BLAKE3 by path.
    """
    lines = (f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return "blake3:" + blake3_of("".join(lines).encode())
