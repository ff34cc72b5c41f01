"""A response that is not the requested file: what it says, and whether a bot protection wrote it.

A source that refuses a request often says why. Some refuse with status 200: they send a login page
or a JSON document instead of the file. Their words are untrusted: they are quoted in part, without
links, and only if they come from a public address. Otherwise anyone who may create a model could
read messages of hosts inside the cluster's network.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress

import httpx2

from sd_api.redaction import redact_text
from sd_loader.errors import LoaderError

MAX_BYTES = 16 << 10
"""Maximum number of bytes that are read of an error response's body."""
FROM_PUBLIC_ADDRESS = "from_public_address"
"""Extension of a response: whether the loader itself connected to a public address."""

_MAX_CHARS = 160
_KEYS = ("message", "error_description", "error", "detail", "msg", "reason", "title")
"""The usual names of an error's text in JSON, in any case. If there are several, the first one
counts."""
_XML_MESSAGE = re.compile(r"\s*<(?:\?xml|Error\b).*?<Message>([^<]+)</Message>", re.DOTALL)
"""The error of an object store: S3, Google's, Azure's."""
_TITLE = re.compile(r"<title[^>]{0,99}>([^<]+)", re.IGNORECASE)
_LINK = re.compile(r"//|\\|@|\]\(|www\.|:\S|\w\.\w[^/?#]{0,250}[/?#]|\d(?:\.\d+){3}", re.IGNORECASE)
"""What makes a word a link, or lets a viewer of the message turn it into one."""
_TIME = re.compile(
    r"\(?(?:\d{4}-\d\d-\d\dT)?\d\d?:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?[.,;)]*", re.ASCII
)
"""A time. It has a colon like a link, but is quoted: a source may refuse requests until then."""
_BOT_PROTECTION = re.compile(
    r"<title>(?:Just a moment|Attention Required! \| Cloudflare)|cf-chl|/challenge-platform/"
    r"|^error code: 1[0-9]{3}\b|_Incapsula_Resource|captcha-delivery\.com|awswaf"
    r"|Checking your browser",
    re.IGNORECASE,
)


def read_error_body(response: httpx2.Response) -> str:
    """Read the beginning of the body as text. Empty if it cannot be read."""
    try:
        body = response.content
    except httpx2.ResponseNotRead:
        body = _beginning(response)
    return body_text(body)


def body_text(body: bytes) -> str:
    """Decode the beginning of a body."""
    return body[:MAX_BYTES].decode("utf-8-sig", errors="replace")


def _beginning(response: httpx2.Response) -> bytes:
    body = b""
    with suppress(httpx2.HTTPError, LoaderError):
        for chunk in response.iter_raw():
            body += chunk
            if len(body) >= MAX_BYTES:
                break
    return body


def is_bot_protection(response: httpx2.Response, body: str) -> bool:
    """Whether a response asks for a browser, as Cloudflare and similar services do."""
    mitigated = response.headers.get("cf-mitigated", "") == "challenge"
    return mitigated or _BOT_PROTECTION.search(body) is not None


def quotation(response: httpx2.Response, body: str, header: str = "") -> str:
    """Return `; the source says: …`, from a header or the body. Empty if nothing is quoted.

    A body in JSON or XML is quoted by its message. A page is quoted by its title, unless the
    response has an error status, which says the same as the titles of error pages.
    """
    if not response.extensions.get(FROM_PUBLIC_ADDRESS):
        return ""
    words = _harmless(header) or _harmless(_message(body) or _xml_message(body))
    if not words and response.is_success:
        words = _harmless(_title(body))
    return f"; the source says: {words}" if words else ""


def _message(body: str) -> str:
    if not body.lstrip().startswith(("{", "[")):
        return ""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return next((text for it in _error_objects(content) if (text := _text(it))), "")


def _error_objects(content: object) -> Iterator[dict[str, object]]:
    """Yield a response's object and the objects in it that may have the text of an error."""
    if isinstance(content, list):
        content = content[0] if len(content) == 1 else None
    if not isinstance(content, dict):
        return
    yield content
    errors = content.get("errors")
    for inner in (content.get("error"), *(errors[:1] if isinstance(errors, list) else ())):
        if isinstance(inner, dict):
            yield inner
            yield from (it for it in inner.values() if isinstance(it, dict))
        elif isinstance(inner, str):
            yield {"message": inner}


def _text(content: Mapping[str, object]) -> str:
    values = {key.lower(): value for key, value in content.items()}
    texts = (values.get(key) for key in _KEYS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _xml_message(body: str) -> str:
    match = _XML_MESSAGE.match(body)
    return html.unescape(match[1]) if match else ""


def _title(body: str) -> str:
    match = _TITLE.search(body) if body.lstrip().startswith("<") else None
    return match[1] if match else ""


def _harmless(text: str) -> str:
    """Return the text's beginning in printable characters, without links and tokens."""
    printable = "".join(char for char in text if char.isprintable() or char.isspace())
    words = " ".join(word for word in printable.split() if not _is_link(word))
    words = redact_text(words)
    return words if len(words) <= _MAX_CHARS else f"{words[: _MAX_CHARS - 1]}…"


def _is_link(word: str) -> bool:
    """Whether a word may be a link, also in full-width characters."""
    is_time = _TIME.fullmatch(word) is not None
    return not is_time and _LINK.search(unicodedata.normalize("NFKC", word)) is not None
