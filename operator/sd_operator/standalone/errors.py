"""Defines `ApiError`, which becomes a Kubernetes Status, its causes, and `StandaloneError`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Json = dict[str, Any]
Value: TypeAlias = Any
"""Any JSON value."""


class StandaloneError(Exception):
    """Standalone cannot start. The message says what to do."""


@dataclass(frozen=True)
class Cause:
    """One error of one field."""

    field: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"

    @classmethod
    def invalid(cls, field: str, value: Value, message: str) -> Cause:
        """Return the cause for a value that breaks a rule."""
        return cls(field, "FieldValueInvalid", f"Invalid value: {quote(value)}: {message}")

    @classmethod
    def wrong_type(cls, field: str, value: Value, message: str) -> Cause:
        """Return the cause for a value of the wrong type."""
        return cls(field, "FieldValueTypeInvalid", f"Invalid value: {quote(value)}: {message}")

    @classmethod
    def unsupported(cls, field: str, value: Value, allowed: Sequence[Any]) -> Cause:
        """Return the cause for a value that is not allowed; the message lists the allowed ones."""
        names = ", ".join(quote(item) for item in allowed)
        message = f"Unsupported value: {quote(value)}: supported values: {names}"
        return cls(field, "FieldValueNotSupported", message)

    @classmethod
    def required(cls, field: str, message: str = "") -> Cause:
        """Return the cause for a missing value."""
        text = f"Required value: {message}" if message else "Required value"
        return cls(field, "FieldValueRequired", text)

    @classmethod
    def duplicate(cls, field: str, value: Value) -> Cause:
        """Return the cause for a value that occurs twice in a list."""
        return cls(field, "FieldValueDuplicate", f"Duplicate value: {quote(value)}")

    @classmethod
    def forbidden(cls, field: str, message: str) -> Cause:
        """Return the cause for a value that may not be set here or now."""
        return cls(field, "FieldValueForbidden", f"Forbidden: {message}")


def quote(value: Value) -> str:
    """Format a value as Kubernetes does in messages."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class ApiError(Exception):
    """A request that fails with a Status."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Json:
        """Return the body of the response."""
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body |= {"message": self.message, "reason": self.reason}
        if self.details is not None:
            body["details"] = self.details
        return body | {"code": self.code}


def bad_request(message: str) -> ApiError:
    """400: the request is malformed."""
    return ApiError(400, "BadRequest", message)


def page_not_found() -> ApiError:
    """404: the path does not exist."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def about(code: int, reason: str, resource: tuple[str, str], name: str, text: str) -> ApiError:
    """Return an error about one object.

    resource: plural and group. text: the message, in which {what} stands for the object.
    """
    plural, group = resource
    details = {"name": name, "group": group, "kind": plural}
    details = {key: value for key, value in details.items() if value}
    qualified = f"{plural}.{group}" if group else plural
    return ApiError(code, reason, text.format(what=f'{qualified} "{name}"'), details)


def not_found(resource: tuple[str, str], name: str) -> ApiError:
    """404: the object does not exist."""
    return about(404, "NotFound", resource, name, "{what} not found")


def conflict(resource: tuple[str, str], name: str, why: str) -> ApiError:
    """409: the object is not in the state that the request expects."""
    text = "Operation cannot be fulfilled on {what}: " + why.replace("{", "{{").replace("}", "}}")
    return about(409, "Conflict", resource, name, text)


def invalid(kind: tuple[str, str], name: str, causes: Sequence[Cause]) -> ApiError:
    """422: fields of the object are invalid, as `causes` says; `kind` is (kind, group)."""
    joined = ", ".join(str(cause) for cause in causes)
    text = joined if len(causes) == 1 else f"[{joined}]"
    error = about(422, "Invalid", kind, name, "{what} is invalid: ")
    error.message += text
    error.args = (error.message,)
    assert error.details is not None  # noqa: S101 - about() sets it
    error.details["causes"] = [
        {"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes
    ]
    return error


def expired(message: str) -> ApiError:
    """410: the revision is no longer in the history."""
    return ApiError(410, "Expired", message)
