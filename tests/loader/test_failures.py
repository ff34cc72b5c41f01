"""Mapping of exceptions to failure reasons, without secrets."""

from __future__ import annotations

import errno

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.failures import explain, trace


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(
            LoaderError(Reason.NOT_A_MODEL, "a page"), Reason.NOT_A_MODEL, id="LoaderError"
        ),
        pytest.param(OSError(errno.ENOSPC, "x"), Reason.INSUFFICIENT_STORAGE, id="full"),
        pytest.param(OSError(errno.EDQUOT, "x"), Reason.INSUFFICIENT_STORAGE, id="over quota"),
        pytest.param(OSError(errno.EFBIG, "x"), Reason.INSUFFICIENT_STORAGE, id="file too large"),
        pytest.param(OSError(errno.EROFS, "x"), Reason.VOLUME_NOT_WRITABLE, id="read-only"),
        pytest.param(OSError(errno.EACCES, "x"), Reason.LOADER_CRASHED, id="no access somewhere"),
        pytest.param(MemoryError(), Reason.OUT_OF_MEMORY, id="memory"),
        pytest.param(OSError(errno.EIO, "x"), Reason.LOADER_CRASHED, id="broken disk"),
        pytest.param(ValueError("secret"), Reason.LOADER_CRASHED, id="unexpected"),
    ],
)
def test_every_exception_has_a_reason(error: Exception, reason: Reason) -> None:
    """The message omits an unexpected exception's text because it may contain a secret."""
    failure = explain(error)
    assert failure.reason is reason
    assert "secret" not in failure.message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("at https://example.com/x?token=hunter2", id="query"),
        pytest.param("at URL('https://user:hunter2@example.com/x?a=1')", id="userinfo, quoted"),
        pytest.param("at https://example.com/x?it='hunter2'&b=hunter2", id="quotes in a query"),
        pytest.param("at HTTPS://example.com/x?hunter2", id="upper case"),
        pytest.param("at socks5://user:hunter2@example.com/", id="proxy"),
    ],
)
def test_traceback_hides_secrets_in_links(text: str) -> None:
    """Tracebacks go to the Pod's log, which others can read."""
    try:
        raise ValueError(text)
    except ValueError as error:
        shown = trace(error)
    assert "test_traceback_hides" in shown
    assert "example.com" in shown
    assert "hunter2" not in shown
