"""What no message may hold: the token, and what the given urls hold besides a place.

Our own messages are written without them; but a server may quote what it was sent, and messages
quote servers: the title of a page, the path of a redirect.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import takewhile
from urllib.parse import unquote, urlsplit

LEAST_CHARS = 9
"""What is shorter is no secret, and may be a word of ours."""


def secrets_of(given: object, token: str | None) -> frozenset[str]:
    """The secrets in whatever a command was given: texts, and dictionaries and lists of them."""
    found = {token or "", *_in_urls(given)}
    found |= {unquote(secret) for secret in found}
    return frozenset(secret for secret in found if len(secret) >= LEAST_CHARS)


def hide(text: str, secrets: frozenset[str]) -> str:
    """The text without the secrets, in any case of letters and also where they are cut short."""
    for secret in sorted(secrets, key=len, reverse=True):
        begins = re.escape(secret[:LEAST_CHARS])
        for match in reversed([*re.finditer(begins, text, re.IGNORECASE | re.ASCII)]):
            rest = zip(text[match.end() :], secret[LEAST_CHARS:], strict=False)
            more = sum(1 for _ in takewhile(lambda pair: pair[0].lower() == pair[1].lower(), rest))
            text = f"{text[: match.start()]}…{text[match.end() + more :]}"
    return text


def _in_urls(given: object) -> Iterator[str]:
    match given:
        case str():
            yield from _in_url(given)
        case dict():
            for value in given.values():
                yield from _in_urls(value)
        case list() | tuple():
            for value in given:
                yield from _in_urls(value)


def _in_url(text: str) -> Iterator[str]:
    try:
        parts = urlsplit(text)
    except ValueError:
        return  # never sent to anybody
    userinfo = parts.netloc.rpartition("@")[0]
    yield from userinfo.partition(":")[::2]
    yield base64.b64encode(unquote(userinfo).encode()).decode()  # as it is sent
    for piece in (*re.split("[&;]", parts.query), parts.fragment):
        yield piece.partition("=")[2] or piece
