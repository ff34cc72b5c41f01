"""Reads a source by position, and reserves space for a file."""

from __future__ import annotations

import ctypes
import errno
import os

from sd_api.reasons import Reason
from sd_loader.bulk import fill_at
from sd_loader.errors import LoaderError

_NO_RESERVATION = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def reserve(fd: int, size: int) -> None:
    """Allocate the file's blocks if the file system can, so that a full disk is an error at once.

    This makes the system call itself: on a file system that cannot reserve (NFS before 4.2), the C
    library's posix_fallocate would write into every block.
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(fd, 0, 0, size) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NO_RESERVATION:
        raise OSError(number, os.strerror(number))


def read_into(fd: int, target: memoryview, position: int) -> None:
    """Fill memory with the bytes at a position. Raise LoaderError if the file ends too early."""
    count = fill_at(fd, target, position)
    if count < target.nbytes:
        raise cut_short(position + count)


def cut_short(position: int) -> LoaderError:
    """The error for a source file that ends within a tensor."""
    return LoaderError(
        Reason.CONVERSION_FAILED,
        f"the source file ends at byte {position}, within a tensor: it was cut short",
    )
