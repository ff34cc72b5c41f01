"""Session cookies of the gallery, and the check that a form comes from its own pages. Pure.

A cookie is signed with the digest of the key that logged in. The gateway therefore stores no
sessions, every replica with the same key file accepts the cookie, and removing the key from the
file ends its sessions.
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
_TRUSTED_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site that are accepted; "none" means that the user opened the URL."""


def issue(key: Key, now: float) -> str:
    """Return the cookie's value for a new session: key id, expiry time and signature."""
    payload = f"{key.id}.{int(now) + LIFETIME_SECONDS}"
    return f"{payload}.{_signature(key, payload)}"


def read(value: str, keys: Keys, now: float) -> Key | None:
    """Return the key of a session, or None if the cookie is invalid or has expired."""
    if not value.isascii():
        return None
    payload, _, signature = value.rpartition(".")
    key_id, _, expires = payload.rpartition(".")
    key = keys.by_id(key_id)
    if key is None:
        return None
    if not hmac.compare_digest(_signature(key, payload), signature):
        return None
    return key if now < int(expires) else None


def is_same_origin(headers: Mapping[str, str], public_url: str | None) -> bool:
    """Return whether a browser sent this POST request from one of the gateway's own pages.

    Browsers send Sec-Fetch-Site over https and to localhost, and Origin with every POST. A page
    can forge neither header. A request with neither header does not come from a browser: the
    result is False.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in _TRUSTED_SITES
    origin = headers.get("origin", "")
    if public_url is not None and _origin(origin) == _origin(public_url):
        return True
    return bool(origin) and urlsplit(origin).netloc == headers.get("host")


def _signature(key: Key, payload: str) -> str:
    return hmac.new(key.digest, _PURPOSE + payload.encode(), hashlib.sha256).hexdigest()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
