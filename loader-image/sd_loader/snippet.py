"""Makes short, printable snippets of untrusted text for messages."""

from __future__ import annotations

MAX_CHARS = 80


def snippet(text: str, limit: int = MAX_CHARS) -> str:
    """Return the beginning of the text on one line. Replace unprintable characters by `?`."""
    head = text[: limit + 1]
    line = "".join(char if char.isprintable() else "?" for char in " ".join(head.split()))
    return line if len(text) <= limit else line[:limit] + "…"
