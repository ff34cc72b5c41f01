"""Short, printable pieces of untrusted input, fit for messages."""

from __future__ import annotations

MAX_CHARS = 80


def snippet(text: str, limit: int = MAX_CHARS) -> str:
    """The text's beginning on one line, everything unprintable replaced."""
    head = text[: limit + 1]
    line = "".join(char if char.isprintable() else "?" for char in " ".join(head.split()))
    return line if len(text) <= limit else line[:limit] + "…"
