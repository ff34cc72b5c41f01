"""Reads request bodies as the vendor's users send them, whatever they say of the content type.

curl sends JSON as a form, fetch sends it as text, some send a form that is one.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from sd_operator.gateway.errors import RefusedError

FORM = "application/x-www-form-urlencoded"
FIELDS_MAX = 100


def parse(raw: bytes, content_type: str) -> dict[str, Any]:
    """The fields of a body; raises RefusedError. No body is one without fields."""
    try:
        text = raw.decode("utf-8-sig")
        if not text.strip():
            return {}
        fields: object = _json(text)
        if fields is None and content_type.partition(";")[0].strip().lower() == FORM:
            fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        raise RefusedError(400, "The body cannot be read: send a JSON object in UTF-8") from None
    if not isinstance(fields, dict):
        raise RefusedError(400, "The body must be a JSON object")
    return fields


def _json(text: str) -> object:
    """The value; None where it is no JSON. Raises ValueError for what cannot be passed on."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # Half a surrogate pair is JSON, but no text.
    json.dumps(value, ensure_ascii=False).encode()
    return value
