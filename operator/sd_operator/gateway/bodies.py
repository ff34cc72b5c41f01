"""Parses request bodies: as a form if both the Content-Type and the text fit a form, else as JSON.

The examples in the docs of the vendor (see gateway/vendor.py) send JSON with a wrong Content-Type:
curl sends that of a form, JavaScript's fetch that of plain text. So text that begins like a JSON
object or array is parsed as JSON.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from sd_operator.gateway.errors import RefusedError

FORM = "application/x-www-form-urlencoded"
FIELDS_MAX = 100


class BodyError(RefusedError):
    """A body that cannot be parsed. Its sender may have no key, so it is counted by address."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


def parse(raw: bytes, content_type: str) -> dict[str, Any]:
    """Return the fields of a body, {} for an empty body; raise BodyError if it cannot be read."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise BodyError("The body has several parts, which are not read; send a JSON object")
    try:
        text = raw.decode("utf-8-sig").strip()
    except ValueError:
        raise BodyError("The body is not text in UTF-8; send a JSON object in UTF-8") from None
    if not text:
        return {}
    is_form = kind == FORM and text[0] not in "{[" and "=" in text
    fields = _form(text) if is_form else _json(text)
    if not isinstance(fields, dict):
        raise BodyError("The body is not a JSON object")
    return fields


def _form(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        raise BodyError(f"The body is a form of more than {FIELDS_MAX} fields") from None


def _json(text: str) -> object:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise BodyError(f"The body is not valid JSON: {error.msg} at {place}") from None
    except (ValueError, RecursionError):  # too long a number, or too deep
        raise BodyError(
            "The body is not valid JSON: a number is too long, or the nesting is too deep"
        ) from None
    try:
        # JSON can escape half a surrogate pair, which UTF-8 cannot encode.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        raise BodyError("The body is not valid JSON: it has half a surrogate pair") from None
    return value
