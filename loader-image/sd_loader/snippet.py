"""Makes short, printable snippets of untrusted text for messages."""

from __future__ import annotations

import json
from contextlib import suppress

MAX_CHARS = 80


def snippet(text: str, limit: int = MAX_CHARS) -> str:
    """Return the beginning of the text on one line. Replace unprintable characters by `?`."""
    head = text[: limit + 1]
    line = "".join(char if char.isprintable() else "?" for char in " ".join(head.split()))
    return line if len(text) <= limit else line[:limit] + "…"


def json_snippet(value: object, limit: int = MAX_CHARS) -> str:
    """Return the beginning of a JSON value.

    A text has quotes only if it would read as another value without them, such as "true" or "11".
    """
    if isinstance(value, str) and value.strip():
        with suppress(ValueError, RecursionError):
            json.loads(value)
            return snippet(f'"{value}"', limit)
        return snippet(value, limit)
    return snippet(json.dumps(value, ensure_ascii=False), limit)
