"""Reads and writes many bytes by position, or has the kernel copy them from file to file."""

from __future__ import annotations

import errno
import os

PIECE_BYTES = 64 << 10
"""The most bytes that one call reads or writes.

On a virtual machine with two cores, 6.9 GB were read from the page cache in 0.7 s with calls of 32
or 64 KiB, and in 2.3 to 2.7 s with 128 KiB and more. With writes of 1 MiB a conversion of SDXL took
18.0 to 19.4 s, with 128 KiB 9.3 to 14.2 s, with 64 KiB 8.1 to 9.5 s, with 16 KiB 12.5 to 16.2 s;
docs/benchmarks.md says under which conditions.
"""

COPY_BYTES = 1 << 20
"""The most bytes that one call copies from file to file, so that a load can be stopped in between.

Copy, digest and fsync of SDXL took 6.5 to 9.0 s with calls of 1 MiB, and 7.0 to 12.4 s with 16 MiB.
"""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_at(fd: int, content: bytes | memoryview, position: int) -> None:
    """Write all bytes of `content` into an open file at this offset."""
    view = memoryview(content)
    done = 0
    while done < view.nbytes:
        done += os.pwrite(fd, view[done : done + PIECE_BYTES], position + done)


def fill_at(fd: int, target: memoryview, position: int) -> int:
    """Fill memory from this offset of an open file. Return how many bytes the file had there."""
    done = 0
    while done < target.nbytes:
        count = os.preadv(fd, [target[done : done + PIECE_BYTES]], position + done)
        if count == 0:
            break
        done += count
    return done


def copy_at(source: int, offset: int, target: int, position: int, count: int) -> int:
    """Have the kernel copy bytes between files. Return how many it copied.

    If they are fewer than `count`, the caller reads and writes the rest: the kernel does not copy
    between these files (EXDEV, EPERM and EIO were seen), or the source has ended. Raises OSError
    only if the target's volume is full.
    """
    copied = 0
    while copied < count:
        wanted = min(COPY_BYTES, count - copied)
        try:
            moved = os.copy_file_range(source, target, wanted, offset + copied, position + copied)
        except OSError as error:
            if error.errno in _FULL:
                raise
            break
        if moved == 0:
            break
        copied += moved
    return copied


def copy_file(source: int, target: int) -> None:
    """Copy a whole file into an empty one."""
    position = copy_at(source, 0, target, 0, os.fstat(source).st_size)
    while piece := os.pread(source, PIECE_BYTES, position):
        write_at(target, piece, position)
        position += len(piece)
