"""Maps HTTP errors to LoaderErrors."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar

import httpx2

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError, TransientError
from sd_loader.net.error_body import is_bot_protection, quotation, read_error_body
from sd_loader.net.exchange import leads_elsewhere
from sd_loader.snippet import snippet

T = TypeVar("T")

_SIGNATURE = re.compile(r"[?&](?:X-(?:Amz|Goog)-Signature|Signature|sig)=", re.IGNORECASE)
"""The parameter of a presigned link to S3, Google's store, CloudFront or Azure's store."""
_MAX_URL_CHARS = 200
"""Maximum number of characters of a url in a message, so that the source's own text fits, too."""


class Refuse(Protocol):
    """Maps an HTTP response that is not the requested file."""

    def __call__(self, response: httpx2.Response, url: str, *, token_sent: bool) -> LoaderError:
        """Return the error for a response. url: the requested link, before any redirect."""


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


def refused(
    response: httpx2.Response, url: str, *, token_sent: bool, words: str = ""
) -> LoaderError:
    """Map an HTTP response that is not the requested file.

    url: the link that was requested, before any redirect. words: the source's own error text, if it
    is not in the response's body.
    """
    body = read_error_body(response)
    is_elsewhere = leads_elsewhere(url, response)
    place = snippet(redact_url(url), _MAX_URL_CHARS)
    if is_elsewhere:
        place += f" redirects to {response.url.netloc.decode()}, which"
    shown = f"{place} answered {response.status_code}"
    reason, what = _meaning(
        response.status_code,
        token_sent=token_sent,
        is_elsewhere=is_elsewhere,
        is_signed=_SIGNATURE.search(url) is not None,
        blocks_programs=is_bot_protection(response, body),
    )
    message = shown + (f": {what}" if what else "") + quotation(response, body, words)
    if reason in (Reason.SOURCE_UNREACHABLE, Reason.RATE_LIMITED):
        return TransientError(reason, message, _retry_after(response))
    return LoaderError(reason, message)


def _meaning(
    status: int, *, token_sent: bool, is_elsewhere: bool, is_signed: bool, blocks_programs: bool
) -> tuple[Reason, str]:
    """Return the reason for a status, and a few words about it.

    is_elsewhere: whether another host than the link's sent the status. It did not receive the
    token, and the link that led to it came from the source. is_signed: whether the link itself
    proves that its bearer may read the file, often for some hours only.
    """
    match status:
        case 404:
            return Reason.SOURCE_NOT_FOUND, ""
        case 410:
            return Reason.SOURCE_NOT_FOUND, "it was removed"
        case 429:
            return Reason.RATE_LIMITED, "too many requests"
        case 408 | 425:
            return Reason.SOURCE_UNREACHABLE, ""
        case _ if status >= 400 and blocks_programs:
            return Reason.SOURCE_UNREACHABLE, "its bot protection lets only browsers through"
        case 401 | 402 | 403 | 451 if is_elsewhere:
            return Reason.ACCESS_DENIED, "access is denied"
        case 401 | 403 if is_signed:
            return (
                Reason.REQUEST_REJECTED,
                "it does not accept the link's signature, which may have expired",
            )
        case 401 if token_sent:
            return Reason.AUTHENTICATION_REQUIRED, "the token is not valid"
        case 401:
            return Reason.AUTHENTICATION_REQUIRED, "it requires a token"
        case 402 | 403 | 451:
            return Reason.ACCESS_DENIED, "access is denied"
        case _ if 400 <= status < 500 and is_elsewhere:
            # The next attempt gets another link from the source.
            return Reason.SOURCE_UNREACHABLE, "it does not accept the link that led to it"
        case _ if 400 <= status < 500:
            return Reason.REQUEST_REJECTED, "it does not accept the request"
        case _:
            return Reason.SOURCE_UNREACHABLE, ""


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):  # It is not a date, or the date is out of range.
        return 0.0
