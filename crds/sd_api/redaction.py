"""Hides secrets in urls and texts. Operator, gateway and loader hide them by these rules only.

`redact_url` and `redact_text` know secrets by their form. `hide` knows them by their value: a
server may quote what it received, in any form, and messages quote servers.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import takewhile
from urllib.parse import parse_qsl, unquote, urlsplit

from sd_api.url_forms import CIVITAI_AIR, REPO_ID

_SECRET = re.compile(
    r"""(?P<url>(?i:[a-z][a-z0-9+.-]{0,31})://[^\s"<>]+)"""
    r"|(?P<scheme>\b(?i:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|\b(?P<kind>whsec_|hf_)[A-Za-z0-9+/=]{8,}"
)
_UNREADABLE = "(unreadable url)"
_SECRET_WORDS = frozenset(
    {"auth", "authorization", "bearer", "credential", "credentials", "jwt", "pass", "passwd"}
    | {"passphrase", "pwd", "sig", "signature"}
)
"""Words in the name of a parameter that holds a secret."""
_SECRET_ENDINGS = ("key", "password", "secret", "token")
"""Endings of further words that mean a secret, as in apikey and accessToken."""
_MIN_SECRET_LENGTH = 9
"""Minimum length of values that `hide` removes. Shorter ones are mostly ordinary words."""


def redact_url(url: str) -> str:
    """Return the url without userinfo and fragment, and with `?…` in place of its query.

    A repo id keeps its revision, and a resource identifier its version. Other texts without `://`,
    such as local paths, lose what would be userinfo, query or fragment in a url. An unreadable url
    is replaced.
    """
    if re.fullmatch(REPO_ID, url):
        return url  # What follows an @ is the revision, not a host.
    if re.fullmatch(CIVITAI_AIR, url):
        return url.partition("?")[0].partition("#")[0]  # What follows this @ is the version.
    if "://" not in url:
        return url.partition("?")[0].partition("#")[0].rpartition("@")[2]
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return _UNREADABLE
    if "@" in parts.path and ":" in parts.netloc:
        return _UNREADABLE  # perhaps a password with a slash in it: user:12/34@host
    if ":" in host:
        host = f"[{host}]"
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{query}"


def redact_text(text: str) -> str:
    """Return the text with its urls redacted, and without tokens and signing keys."""
    return _SECRET.sub(_redacted, text)


def _redacted(match: re.Match[str]) -> str:
    if match["url"]:
        return redact_url(match["url"])
    return (match["scheme"] or match["kind"]) + "…"


def carries_secret(url: str) -> bool:
    """Whether the url has userinfo, or a parameter that is named like a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return "@" in parts.netloc or any(is_secret_name(name) for name, _ in parse_qsl(parts.query))


def is_secret_name(name: str) -> bool:
    """Whether a parameter is named like a secret: token, api_key, X-Amz-Signature, accessToken."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in words)


def secrets_of(given: object, *secret: str | None) -> frozenset[str]:
    """Return these secrets, and the possible ones in the urls of a string, dictionary or list.

    In a url, userinfo, fragment and the values of all parameters may be secrets. Values that are
    too short to be hidden are left out.
    """
    secrets = {*(text or "" for text in secret), *_in_urls(given)}
    secrets |= {unquote(secret) for secret in secrets}
    return frozenset(secret for secret in secrets if len(secret) >= _MIN_SECRET_LENGTH)


def hide(text: str, secrets: frozenset[str]) -> str:
    """Return the text without these secrets, also where their case differs or they are cut off."""
    for secret in sorted(secrets, key=len, reverse=True):
        beginning = re.escape(secret[:_MIN_SECRET_LENGTH])
        for match in reversed([*re.finditer(beginning, text, re.IGNORECASE | re.ASCII)]):
            rest = zip(text[match.end() :], secret[_MIN_SECRET_LENGTH:], strict=False)
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
        return  # it cannot be requested, so no server can quote it
    userinfo = parts.netloc.rpartition("@")[0]
    yield from userinfo.partition(":")[::2]
    yield base64.b64encode(unquote(userinfo).encode()).decode()  # the Authorization header
    for piece in (*re.split("[&;]", parts.query), parts.fragment):
        yield piece.partition("=")[2] or piece
