"""Reads JSON of which only a few fields are needed, whatever the others contain.

An author who writes something odd into a description must not make the other fields unreadable.
So numbers of many digits and deeply nested values, which Python refuses to parse, become null. NaN
and infinite numbers, which JSON does not have, become null as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_DIGITS_MAX = 20
_DEPTH = 20
"""Depth to which an answer is read if it is too deep for Python. Needed fields are not deeper."""
_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]|[^"\[\]{}]+', re.DOTALL)


def parse(content: bytes) -> object:
    """Return the value. Raise ValueError if the content is not JSON.

    Bytes that are not UTF-8 are replaced. Texts may contain halves of surrogate pairs.
    """
    text = content.decode(errors="replace")
    try:
        return _loads(text)
    except RecursionError:
        return _loads("".join(_shallow(text)))


def inner_object(answer: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a field that is an object. Empty if it is missing or is not an object."""
    value = answer.get(name)
    return value if isinstance(value, dict) else {}


def _loads(text: str) -> object:
    return json.loads(text, parse_int=_number, parse_constant=lambda _: None)


def _number(digits: str) -> int | None:
    return int(digits) if len(digits) <= _DIGITS_MAX else None


def _shallow(text: str) -> Iterator[str]:
    """Yield the JSON text with null in place of what is nested deeper than `_DEPTH`."""
    depth = 0
    for part in _PART.findall(text):
        if part in "[{":
            depth += 1
            if depth == _DEPTH + 1:
                yield "null"
        if depth <= _DEPTH:
            yield part
        if part in "]}":
            depth -= 1
