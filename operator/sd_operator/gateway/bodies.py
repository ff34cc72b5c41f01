"""Parses request bodies as JSON or as a form, whatever the Content-Type.

The vendor's examples send JSON with a wrong Content-Type: that of a form from curl, that of text
from fetch.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from sd_operator.gateway.errors import RefusedError

FORM = "application/x-www-form-urlencoded"
FIELDS_MAX = 100


def parse(raw: bytes, content_type: str) -> dict[str, Any]:
    """Return the fields of a body; raise RefusedError. An empty body has no fields."""
    try:
        text = raw.decode("utf-8-sig")
        if not text.strip():
            return {}
        fields: object = _json(text)
        if fields is None and content_type.partition(";")[0].strip().lower() == FORM:
            fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        text = "The request body cannot be read: send a JSON object in UTF-8"
        raise RefusedError(400, text) from None
    if not isinstance(fields, dict):
        raise RefusedError(400, "The request body must be a JSON object")
    return fields


def _json(text: str) -> object:
    """Return the value, or None if the text is not JSON; raise ValueError if it is not UTF-8."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # JSON can escape half a surrogate pair, which UTF-8 cannot encode.
    json.dumps(value, ensure_ascii=False).encode()
    return value
