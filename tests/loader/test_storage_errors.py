"""Mapping of the volume's system errors to failure reasons."""

from __future__ import annotations

import errno
import os

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.storage_errors import storage_error, storage_errors

FULL, NOT_WRITABLE = Reason.INSUFFICIENT_STORAGE, Reason.VOLUME_NOT_WRITABLE


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        pytest.param(
            errno.ENOSPC, FULL, "the volume is full: m: No space left on device", id="no space"
        ),
        pytest.param(errno.EDQUOT, FULL, "the volume is full: m: Disk quota exceeded", id="quota"),
        pytest.param(errno.EFBIG, FULL, "the volume is full: m: File too large", id="file size"),
        pytest.param(
            errno.EROFS,
            NOT_WRITABLE,
            "cannot use the volume: m: Read-only file system",
            id="read-only",
        ),
        pytest.param(
            errno.EACCES, NOT_WRITABLE, "cannot use the volume: m: Permission denied", id="access"
        ),
        pytest.param(
            errno.EPERM,
            NOT_WRITABLE,
            "cannot use the volume: m: Operation not permitted",
            id="permission",
        ),
    ],
)
def test_volume_error_has_its_reason(code: int, reason: Reason, message: str) -> None:
    """The message names the file, if one is given, and the system's error."""
    error = OSError(code, os.strerror(code))
    with pytest.raises(LoaderError) as caught, storage_errors("m"):
        raise error
    assert (caught.value.reason, caught.value.message) == (reason, message)
    assert caught.value.__cause__ is error
    assert storage_error(error).message == message.replace(" m:", "")


def test_other_errors_pass_unchanged() -> None:
    """A damaged disk is neither full nor read-only."""
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Input/output") as caught, storage_errors("m"):
        raise error
    assert caught.value is error
