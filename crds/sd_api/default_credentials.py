"""The setting that names a Secret for each host, for loads without a Secret of their own.

Operator and loader read the same text: `huggingface.co=hub-token,civitai.com=site-token:private`.
The setting has names only. The tokens are in Secrets, which are mounted as files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sd_api.netguard import default_port, effective_port

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[0-9]{1,5})?")
_SECRET = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_PRIVATE, _GATEWAY = "private", "gateway"


@dataclass(frozen=True)
class DefaultSecret:
    """The Secret, in the namespace of each model, that has the token for one host."""

    name: str

    for_private: bool = False
    """Whether the token may also open the private repos of its account."""

    for_gateway: bool = False
    """True if loads may use the token although a caller of the gateway chose their source."""


def parse_default_credentials(text: str) -> dict[str, DefaultSecret]:
    """Read `HOST=SECRET,HOST=SECRET:private:gateway`; raise ValueError with the cause."""
    found: dict[str, DefaultSecret] = {}
    for entry in (entry.strip() for entry in text.split(",") if entry.strip()):
        host, _, value = (part.strip() for part in entry.partition("="))
        name, *words = value.split(":")
        host = host.lower()
        is_name = _HOST.fullmatch(host) and _SECRET.fullmatch(name)
        if not is_name or not {_PRIVATE, _GATEWAY}.issuperset(words):
            raise ValueError(
                "must be entries HOST=SECRET, separated by commas, where HOST is a host or"
                f" host:port, and SECRET may end with :{_PRIVATE} or :{_GATEWAY}; one is"
                f" {entry[:80]!r}"
            )
        if host in found:
            raise ValueError(f"names two Secrets for {host}")
        found[host] = DefaultSecret(name, _PRIVATE in words, _GATEWAY in words)
    return found


def format_default_credentials(entries: Mapping[str, DefaultSecret]) -> str:
    """Return the text of the setting that names these Secrets, by host."""
    return ",".join(
        f"{host}={secret.name}"
        + (f":{_PRIVATE}" if secret.for_private else "")
        + (f":{_GATEWAY}" if secret.for_gateway else "")
        for host, secret in sorted(entries.items())
    )


def file_of(host: str, key: str) -> str:
    """Return the name of the mounted file that has this key of the host's Secret."""
    return f"{host.replace(':', '_')}.{key}"


def hosts_of(url: str) -> tuple[str, ...]:
    """Return the spellings of a link's host: HOST:PORT, and HOST if the port is the default one.

    The result is empty if the link has no readable host.
    """
    try:
        parts = urlsplit(url)
        port, name = effective_port(parts), parts.hostname
    except ValueError:
        return ()
    if not name:
        return ()
    host = f"[{name}]" if ":" in name else name
    full = f"{host}:{port}"
    return (host, full) if port == default_port(parts) else (full,)
