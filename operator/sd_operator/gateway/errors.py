"""Maps errors to HTTP error responses: a status code, a message and a retry time."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sd_api.crd import RULES
from sd_api.wording import DNS_NAME_WORDS, PATTERNS
from sd_operator.base.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

log = logging.getLogger(__name__)

UNAVAILABLE_RETRY_SECONDS = 5


class RefusedError(Exception):
    """A call that the gateway answers with an HTTP error."""

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        """Seconds after which the same call may succeed; None if this time is not known."""
        self.details = details or {}
        """Further fields of the response, besides the fields of the vendor's API."""


class FieldRefusedError(RefusedError):
    """A call that is refused because of one field of its resource."""

    def __init__(self, status: int, field: str, message: str) -> None:
        super().__init__(status, message)
        self.field = field
        """The field's path in the resource."""


def map_error(error: Exception) -> RefusedError:
    """Map an error to an HTTP error response; re-raise anything unexpected."""
    match error:
        case RefusedError():
            return error
        case ApiError():
            return map_api_error(error)
        case HTTPException():
            return RefusedError(error.status_code, str(error.detail))
        case ClientDisconnect():
            # The client has gone and never reads this response, but the metrics count its status.
            return RefusedError(400, "The request body is incomplete")
        case _:
            raise error


def map_api_error(error: ApiError) -> RefusedError:
    """Map an error of the API server to an HTTP error response."""
    match error:
        case NotFoundError():
            return RefusedError(404, "The model or the key's namespace does not exist")
        case AlreadyExistsError() | ConflictError():
            text = "Someone else changed the model at the same time; check it and try again"
            return RefusedError(409, text)
        case InvalidError():
            return RefusedError(400, _explain(error))
        case ForbiddenError() if error.namespace_terminating:
            return RefusedError(409, "The key's namespace is being deleted")
        case ForbiddenError() if error.quota_exceeded:
            text = "The key's namespace has no quota left; delete a model or raise the quota"
            return RefusedError(409, text)
        case UnavailableError():
            log.warning("the API server is unavailable: %s", error)
            text = "The Kubernetes API server does not answer; try again in a moment"
            return RefusedError(503, text, UNAVAILABLE_RETRY_SECONDS)
        case _:
            log.error("the API server rejected a request: %s", error)
            text = (
                "The Kubernetes API server rejected the gateway's request;"
                " ask the administrator to look for the cause in the gateway's log"
            )
            return RefusedError(503, text)


def _explain(error: InvalidError) -> str:
    """Return one text with the messages of all causes, without repetitions."""
    messages = [message for _, message in in_words(error.causes)]
    return "; ".join(dict.fromkeys(messages)) or str(error)


def in_words(causes: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the field of each cause, and its message in our words.

    Our words leave out rejected values and patterns.
    """
    for field, message in causes:
        # The API server adds this cause when a field is invalid; that field has its own cause.
        if "some validation rules were not checked" not in message:
            yield field, _plain(field, message)


def _plain(field: str, message: str) -> str:
    """Return our words for a message, without the rejected value, which may be long or secret."""
    for _, _, friendly in RULES:
        if message.endswith(friendly):
            return friendly
    if not field:
        return message
    text = _VALUE.sub("", message.rpartition(f"{field} in body ")[2])
    words = _in_words(text)
    return f"{field} {words}" if words else f"{field}: {text}"


_VALUE = re.compile(r"^(Invalid|Unsupported) value: (\"(\\.|[^\"\\])*\"|\S+): ")
_FORMS = (
    (r"must be of type integer: .*", "must be a whole number"),
    (r"must be of type boolean: .*", "must be true or false"),
    (r"must be of type (\w+): .*", r"must be of type \1"),
    (
        r"(?:Too long: may not be (?:more|longer)|must be no more) than (\d+).*",
        r"must have at most \1 characters",
    ),
    (r"Required value.*", "is required"),
    (r"supported values: (.*)", r"must be one of \1"),
    (r"should (.*)", r"must \1"),
)
"""Texts of the API server's own validation, and our words for each."""


def _in_words(text: str) -> str | None:
    """Return our words for a text of the API server, to follow a field's name; None if unknown."""
    if "regex used for validation is" in text:
        return DNS_NAME_WORDS  # Only names have this message; the gateway writes no labels.
    if match := re.fullmatch(r"should match '(.*)'", text, re.DOTALL):
        return PATTERNS.get(match[1], "has characters that are not allowed")
    for form, words in _FORMS:
        if match := re.fullmatch(form, text, re.DOTALL):
            return match.expand(words)
    return None
