"""Maps errors to HTTP error responses: a status code, a message and a retry time."""

from __future__ import annotations

import logging
import re

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sd_api.crd import RULES
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

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        """Seconds after which another call may succeed; None if the same call fails again."""


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
            # The client has gone and never reads this, but the metrics count its status.
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
    """Return the messages of all causes, each once."""
    messages = [plain(field, message) for field, message in error.causes]
    return "; ".join(dict.fromkeys(messages)) or str(error)


def plain(field: str, message: str) -> str:
    """Return the message of a cause without the rejected value, which may be long or secret.

    The message of a CRD rule names its field; any other message gets the field as a prefix.
    """
    for _, _, friendly in RULES:
        if message.endswith(friendly):
            return friendly
    return f"{field}: " + re.sub(r"^Invalid value: (\"(\\.|[^\"\\])*\"|\S+): ", "", message)
