"""Maps HTTP errors to LoaderErrors, and retries the transient ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError, TransientError

T = TypeVar("T")

_PROGRESS_BYTES = 1 << 20
_HUB_CODES = {
    "GatedRepo": (Reason.ACCESS_DENIED, "the repo is gated, and this account has no access to it"),
    "RepoNotFound": (Reason.SOURCE_NOT_FOUND, "the repo does not exist or is private"),
    "RevisionNotFound": (Reason.SOURCE_NOT_FOUND, "the repo has no such revision"),
    "EntryNotFound": (Reason.SOURCE_NOT_FOUND, "the repo has no such file"),
}


@dataclass(frozen=True)
class Retries:
    """How transient failures are retried within one Pod. After that, the Job starts another Pod."""

    delays: tuple[float, ...] = (0.5, 2.0, 5.0)
    """Seconds before each retry."""

    longest_wait: float = 30.0
    """Seconds. If the server asks to wait longer, the failure is not retried."""

    sleep: Callable[[float], None] = time.sleep

    def run(self, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Run an action, and retry it after a TransientError.

        The count of failures starts again whenever progress() exceeds its best value by 1 MiB.
        """
        best, failures = progress(), 0
        while True:
            try:
                return action()
            except TransientError as error:
                # A download that restarts repeatedly must not count as progress.
                if progress() >= best + _PROGRESS_BYTES:
                    best, failures = progress(), 0
                if failures >= len(self.delays) or error.after > self.longest_wait:
                    raise
                self.sleep(max(self.delays[failures], error.after))
                failures += 1


RETRIES = Retries()


def unreachable(url: str, error: httpx2.RequestError) -> LoaderError:
    """Map an error below HTTP, such as a failed connection."""
    if isinstance(error, httpx2.TooManyRedirects):
        return LoaderError(Reason.SOURCE_UNREACHABLE, f"{redact_url(url)} redirects too often")
    if isinstance(error, httpx2.UnsupportedProtocol):
        return LoaderError(
            Reason.ADDRESS_REFUSED, f"{redact_url(url)} redirects to a link that is not http(s)"
        )
    text = str(error) or type(error).__name__
    return TransientError(Reason.SOURCE_UNREACHABLE, f"{redact_url(url)}: {text[:200]}")


def refused(response: httpx2.Response, url: str, *, token_sent: bool) -> LoaderError:
    """Map an HTTP response that is not the requested file."""
    status = response.status_code
    shown = f"{redact_url(url)} answered {status}"
    hub_error = _HUB_CODES.get(response.headers.get("X-Error-Code", ""))
    if hub_error is not None:
        reason, text = hub_error
        return LoaderError(reason, f"{shown}: {text}")
    match status:
        case 401 if token_sent:
            return LoaderError(Reason.AUTHENTICATION_REQUIRED, f"{shown}: the token is not valid")
        case 401:
            return LoaderError(Reason.AUTHENTICATION_REQUIRED, f"{shown}: it requires a token")
        case 403 | 451:
            return LoaderError(Reason.ACCESS_DENIED, f"{shown}: access is denied")
        case 429:
            return TransientError(
                Reason.RATE_LIMITED, f"{shown}: too many requests", _retry_after(response)
            )
        case 408 | 425:
            return TransientError(Reason.SOURCE_UNREACHABLE, shown)
        case _ if 400 <= status < 500:
            return LoaderError(Reason.SOURCE_NOT_FOUND, shown)
        case _:
            return TransientError(Reason.SOURCE_UNREACHABLE, shown, _retry_after(response))


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):  # It is not a date, or the date is out of range.
        return 0.0
