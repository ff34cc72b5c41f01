"""Requests to servers outside the cluster. They follow redirects; the guard checks each address."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import urljoin

import aiohttp

from sd_api.netguard import MAX_REDIRECTS
from sd_api.redaction import redact_url
from sd_api.sites.lenient_json import parse
from sd_operator.clients.http import Outgoing

ERRORS = (aiohttp.ClientError, OSError, ValueError)
"""What the functions of this module raise. A refused address and a timeout are OSErrors."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEXTS = ("text/", "application/json", "application/xml")
"""How the Content-Type of web pages and error messages begins."""


def responses(
    outgoing: Outgoing, method: str, url: str, headers: Mapping[str, str]
) -> contextlib.aclosing[AsyncGenerator[aiohttp.ClientResponse, None]]:
    """Yield each redirect and then the final response; raise ValueError for too many redirects."""

    async def follow(url: str) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        for _ in range(MAX_REDIRECTS + 1):
            async with outgoing.call(method, url, headers) as response:
                yield response
                if response.status not in REDIRECTS:
                    return
                url = _target(url, response)
        raise ValueError("too many redirects")

    return contextlib.aclosing(follow(url))


async def read_json(outgoing: Outgoing, url: str, most: int) -> dict[str, object]:
    """Return the JSON object at a url.

    Raise ClientResponseError if the status is an error. Raise ValueError if the answer is longer
    than `most` bytes or is not a JSON object.
    """
    raw = bytearray()
    async with responses(outgoing, "GET", url, {"Accept": "application/json"}) as answers:
        async for response in answers:
            if response.status in REDIRECTS:
                continue
            response.raise_for_status()
            async for chunk in response.content.iter_chunked(2**16):
                raw += chunk
                if len(raw) > most:
                    raise ValueError("the answer is too long")
    answer = parse(bytes(raw))
    if not isinstance(answer, dict):
        raise ValueError("the answer is not a JSON object")
    return answer


def is_text(response: aiohttp.ClientResponse) -> bool:
    """Return whether the Content-Type is that of a web page or another text, not of a model."""
    return response.content_type.startswith(_TEXTS)


def _target(url: str, response: aiohttp.ClientResponse) -> str:
    """Return the url that a redirect leads to; raise ValueError if it leads from https to http."""
    target = urljoin(url, response.headers.get("Location", ""))
    if url.startswith("https://") and not target.startswith("https://"):
        raise ValueError(f"{redact_url(url)} redirects to plain http")
    return target
