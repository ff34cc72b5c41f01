"""Who is signed in, and whether a form was sent from a page of ours. Pure.

The cookie is signed with the digest of the key that signed in: it needs no memory, holds with
every replica that reads the same file, and ends when its key is taken out of the file.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from sd_operator.gateway.keys import Key, Keys

COOKIE = "sd-gallery"
LIFETIME_SECONDS = 12 * 3600

_PURPOSE = b"sd-gateway gallery session\0"
_SAME = ("same-origin", "none")


def issue(key: Key, now: float) -> str:
    """The value of the cookie of a new session."""
    claim = f"{key.id}.{int(now) + LIFETIME_SECONDS}"
    return f"{claim}.{_signature(key, claim)}"


def read(value: str, keys: Keys, now: float) -> Key | None:
    """Whose session a cookie's value is, while it and its key last."""
    if not value.isascii():
        return None
    claim, _, signature = value.rpartition(".")
    key_id, _, expires = claim.rpartition(".")
    key = keys.by_id(key_id)
    if key is None:
        return None
    if not hmac.compare_digest(_signature(key, claim), signature):
        return None
    return key if now < int(expires) else None


def is_same_origin(headers: Mapping[str, str], public_url: str | None) -> bool:
    """Whether a browser sent this from a page of ours.

    Browsers send Sec-Fetch-Site over https and to localhost, and Origin with every POST; pages
    can forge neither. What has none of the two is no browser, and has no business here.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in _SAME
    origin = headers.get("origin", "")
    if public_url is not None and _origin(origin) == _origin(public_url):
        return True
    return bool(origin) and urlsplit(origin).netloc == headers.get("host")


def _signature(key: Key, claim: str) -> str:
    return hmac.new(key.digest, _PURPOSE + claim.encode(), hashlib.sha256).hexdigest()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
