"""What callers are told when something cannot be done: a status and a sentence."""

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
    """A call that is refused; retry_after in seconds, where another may succeed."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


def refused(error: Exception) -> RefusedError:
    """The refusal that an error is to the caller; what is none is raised again."""
    match error:
        case RefusedError():
            return error
        case ApiError():
            return refusal(error)
        case HTTPException():
            return RefusedError(error.status_code, str(error.detail))
        case ClientDisconnect():
            return RefusedError(400, "The body was cut short")  # nobody hears it
        case _:
            raise error


def refusal(error: ApiError) -> RefusedError:
    """What an error of the API server means to the caller."""
    match error:
        case NotFoundError():
            return RefusedError(404, "It is not there any more, or the key's namespace is not")
        case AlreadyExistsError() | ConflictError():
            return RefusedError(409, "It was changed by somebody else; look at it and try again")
        case InvalidError():
            return RefusedError(400, _explain(error))
        case ForbiddenError() if error.namespace_terminating:
            return RefusedError(409, "The key's namespace is being deleted")
        case ForbiddenError() if error.quota_exceeded:
            return RefusedError(409, "The quota of the key's namespace is used up; delete a model")
        case UnavailableError():
            log.warning("the API server is away: %s", error)
            text = "The Kubernetes API server does not answer; try again in a moment"
            return RefusedError(503, text, UNAVAILABLE_RETRY_SECONDS)
        case _:
            log.error("the API server refuses the gateway: %s", error)
            text = "The cluster refuses this to the gateway; its administrator finds why in the log"
            return RefusedError(503, text)


def _explain(error: InvalidError) -> str:
    """The CRD's own messages, which say what to do; of other causes the field and what is wrong."""
    messages = [plain(field, message) for field, message in error.causes]
    return "; ".join(dict.fromkeys(messages)) or str(error)


def plain(field: str, message: str) -> str:
    """A cause without the value, which may be long or secret."""
    for _, _, friendly in RULES:
        if message.endswith(friendly):
            return friendly
    return f"{field}: " + re.sub(r"^Invalid value: (\"(\\.|[^\"\\])*\"|\S+): ", "", message)
