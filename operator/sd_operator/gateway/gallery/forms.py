"""Reads submitted forms, and maps refused requests to errors of the form's fields."""

from __future__ import annotations

from starlette.requests import Request

from sd_operator.base.errors import AlreadyExistsError, ApiError, InvalidError
from sd_operator.gateway.errors import FieldRefusedError, map_api_error
from sd_operator.gateway.gallery import form

FIELDS_MAX = 512
"""Maximum number of fields of a form, such as the selected models of a list."""


async def read(request: Request) -> dict[str, str]:
    """Return the text fields of a submitted form; uploaded files are rejected."""
    async with request.form(max_files=0, max_fields=FIELDS_MAX) as fields:
        return {name: value for name, value in fields.items() if isinstance(value, str)}


async def read_list(request: Request, name: str) -> list[str]:
    """Return all values of one field of a submitted form."""
    async with request.form(max_files=0, max_fields=FIELDS_MAX) as fields:
        return [value for value in fields.getlist(name) if isinstance(value, str)]


def complaints(error: ApiError | FieldRefusedError) -> tuple[int, form.Complaints]:
    """Return the status code and the form errors for a change that was refused."""
    if isinstance(error, FieldRefusedError):
        return error.status, form.Complaints({error.field: [form.in_labels(error.message)]})
    if isinstance(error, AlreadyExistsError):
        text = "A model with this name already exists. Use another name, or delete that model."
        return 409, form.Complaints({"metadata.name": [text]})
    if isinstance(error, InvalidError):
        return 422, form.complaints(error.causes, str(error))
    refused = map_api_error(error)
    return refused.status, form.Complaints(others=(refused.message,))
