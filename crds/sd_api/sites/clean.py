"""Bounds untrusted values, so that they fit into a card.

Long texts are cut. Other values that do not fit are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from sd_api.card import PAGE_PATTERN, TEXT_MAX, TRIGGER_WORDS_MAX, Card, plain
from sd_api.redaction import hide, redact_text, redact_url

_LOOKED_AT = 8 * TEXT_MAX
"""Maximum number of characters of a text that are read, printable or not."""
_ITEMS_MAX = 1000
"""Maximum number of entries of a list or dictionary that are read."""
_SIDE = re.compile(r"\d{2,5}", re.ASCII)
_RESOLUTION_MAX = 512
"""A text of this length or more is not a resolution."""
_PAGE_MAX = 512


def text(value: object) -> str | None:
    """Return a text of a card. None if the value is not a text, or has nothing to show."""
    if not isinstance(value, str):
        return None
    shown = redact_text(plain(value[:_LOOKED_AT]))
    if shown and (len(value) > _LOOKED_AT or len(shown) > TEXT_MAX):
        shown = f"{shown[: TEXT_MAX - 1].rstrip()}…"
    return shown or None


def first_text(value: object) -> str | None:
    """Return a text, or the first text of a list."""
    values = value[:_ITEMS_MAX] if isinstance(value, list) else [value]
    return next(filter(None, map(text, values)), None)


def words(values: Iterable[object]) -> tuple[str, ...]:
    """Return the texts in their order, without repeated ones, as many as a card may have."""
    found = dict.fromkeys(filter(None, map(text, values)))
    return tuple(found)[:TRIGGER_WORDS_MAX]


def parsed(value: str | None) -> object:
    """Parse JSON. None if the value is missing or is not JSON."""
    try:
        return json.loads(value or "")
    except (ValueError, RecursionError):
        return None


def entries(value: object) -> list[tuple[str, object]]:
    """Return the first entries of a JSON object. Empty if the value is not one."""
    if not isinstance(value, Mapping):
        return []
    return [item for _, item in zip(range(_ITEMS_MAX), value.items(), strict=False)]


def resolution(value: str | None) -> str | None:
    """Return WIDTHxHEIGHT from one or two numbers in a text such as "(512, 768)", or None."""
    if value is None or len(value) >= _RESOLUTION_MAX or re.search(r"\d{6}", value):
        return None
    sides = _SIDE.findall(value)
    return f"{sides[0]}x{sides[-1]}" if len(sides) in (1, 2) else None


def page(url: str) -> str | None:
    """Return the link to a page, without secrets. None if it is not an http(s) link."""
    shown = redact_url(url)
    is_page = len(shown) <= _PAGE_MAX and re.search(PAGE_PATTERN, shown) is not None
    return shown if is_page else None


def without(card: Card, secrets: frozenset[str]) -> Card:
    """Return the card without these secrets. A server that received one may quote it."""
    fields = card.model_dump(exclude_defaults=True)
    for name, value in fields.items():
        is_text = isinstance(value, str)
        fields[name] = hide(value, secrets) if is_text else [hide(item, secrets) for item in value]
    if fields.get("page") != card.page:
        fields["page"] = None
    return Card.model_validate(fields)
