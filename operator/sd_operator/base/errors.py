"""The errors of the operator, and of the gateway where it uses the operator's clients.

    OperatorError             the root
      SettingsError           a setting is wrong; also a ValueError
      ApiError                a request to the API server failed
        NotFoundError         404
        AlreadyExistsError    409 for a create
        ConflictError         409 for a change
        ForbiddenError        403: RBAC, quota or admission
        InvalidError          the other 4xx: the object is wrong
        UnavailableError      401, 429, 5xx or no answer: the only one worth repeating unchanged
      SigningKeyError         the key that signs webhook calls cannot be read
      WatchEndedError         the watches ended; the process must be restarted

An address that may not be called is sd_api.netguard.AddressRefusedError.
"""

from __future__ import annotations


class OperatorError(Exception):
    """The root of the tree."""


class SettingsError(OperatorError, ValueError):
    """A setting cannot be used; the message names the variable and what it must be."""


class ApiError(OperatorError):
    """A request to the API server failed. The message is the server's if it sent one, redacted."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
        """The HTTP status; 0 if there was no answer."""


class NotFoundError(ApiError):
    """The object, or the kind, does not exist."""


class AlreadyExistsError(ApiError):
    """An object of this name already exists."""


class ConflictError(ApiError):
    """The object has another uid or another version than the change was meant for."""


class ForbiddenError(ApiError):
    """RBAC, a quota or an admission plugin rejected the request."""

    def __init__(
        self, message: str, code: int = 403, *, namespace_terminating: bool = False
    ) -> None:
        super().__init__(message, code)
        self.namespace_terminating = namespace_terminating
        """Whether the reason is that the namespace is being deleted."""

    @property
    def quota_exceeded(self) -> bool:
        """Whether the reason is a ResourceQuota."""
        return is_quota_message(str(self))


class InvalidError(ApiError):
    """The API server rejected the object as invalid."""

    def __init__(
        self, message: str, code: int = 422, causes: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message, code)
        self.causes = causes
        """The fields at fault, each with what is wrong."""


class UnavailableError(ApiError):
    """The API server did not answer, is overloaded or broken, or does not accept our token."""


class SigningKeyError(OperatorError):
    """The key that signs webhook calls cannot be read; the message names it and the reason."""


class WatchEndedError(OperatorError):
    """The watches ended or no longer receive events; the process must be restarted."""


def is_quota_message(message: str) -> bool:
    """Whether an error or Event message comes from a ResourceQuota.

    Kubernetes has no code for this: its text is the only sign.
    """
    return "exceeded quota" in message
