"""Maps system errors of the volume to LoaderErrors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
VOLUME_ONLY = _FULL | {errno.EROFS}
"""Error numbers that come only from a volume. EACCES and EPERM may have other causes."""


def storage_error(error: OSError, path: str = "") -> LoaderError:
    """Return the LoaderError for a system call that failed because of the volume."""
    text = os.strerror(error.errno or 0)
    detail = f"{path}: {text}" if path else text
    if error.errno in _FULL:
        return LoaderError(Reason.INSUFFICIENT_STORAGE, f"the volume is full: {detail}")
    return LoaderError(Reason.VOLUME_NOT_WRITABLE, f"cannot use the volume: {detail}")


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Raise a LoaderError if the volume is full, is read-only, or denies access.

    Other system errors pass unchanged. path: what the message names.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL | NOT_ALLOWED:
            raise
        raise storage_error(error, path) from error
