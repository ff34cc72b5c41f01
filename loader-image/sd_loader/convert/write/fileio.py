"""Reads and writes at positions, whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError

_NO_RESERVATION = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Name a full volume as such."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise LoaderError(
            Reason.INSUFFICIENT_STORAGE, f"the volume is full: {path}: {error.strerror}"
        ) from error


def reserve(fd: int, size: int) -> None:
    """Allocate the file's blocks, where the file system can, so that a full disk shows at once.

    The system call itself: the C library's posix_fallocate writes into every block of a file
    system that cannot (NFS before 4.2).
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(fd, 0, 0, size) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NO_RESERVATION:
        raise OSError(number, os.strerror(number))


def read_into(fd: int, target: memoryview, position: int) -> None:
    """Fill memory with the bytes at a position."""
    while target.nbytes:
        count = os.preadv(fd, [target], position)
        if count == 0:
            raise cut_short(position)
        position, target = position + count, target[count:]


def cut_short(position: int) -> LoaderError:
    """The error of a source file that ends within a tensor."""
    return LoaderError(
        Reason.CONVERSION_FAILED,
        f"the source file ends at byte {position}, within a tensor: it was cut short",
    )
