"""The body of an error response: what it says, and whether a bot protection wrote it.

A source that refuses a request often says why. Its words are untrusted: they are quoted in part,
without links, and only if they come from a public address. Otherwise anyone who may create a model
could read error messages of hosts inside the cluster's network.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress

import httpx2

from sd_api.redaction import redact_text
from sd_loader.errors import LoaderError

MAX_BYTES = 16 << 10
"""How much of the body of an error response is read."""
FROM_PUBLIC_ADDRESS = "from_public_address"
"""Extension of a response: whether the loader itself connected to a public address."""

_MAX_CHARS = 160
_KEYS = ("message", "error", "detail")
"""The usual names of an error's text in JSON. If there are several, the first one counts."""
_LINK = re.compile(r"//|:/|\bwww\.|\bmailto:|[a-z0-9-]\.[a-z]{2,}[/?#:]", re.IGNORECASE)
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
    """Return `; the source says: …`, from a header or a JSON body. Empty if nothing is quoted."""
    if not response.extensions.get(FROM_PUBLIC_ADDRESS):
        return ""
    words = _harmless(header) or _harmless(_message(body))
    return f"; the source says: {words}" if words else ""


def _message(body: str) -> str:
    if not body.lstrip().startswith("{"):
        return ""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    texts = [content.get(key) for key in _KEYS]
    if isinstance(content.get("error"), dict):
        texts.append(content["error"].get("message"))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _harmless(text: str) -> str:
    """Return the text's beginning in printable characters, without links and tokens."""
    printable = "".join(char for char in text if char.isprintable() or char.isspace())
    words = " ".join(word for word in printable.split() if not _LINK.search(word))
    words = redact_text(words)
    return words if len(words) <= _MAX_CHARS else f"{words[: _MAX_CHARS - 1]}…"
