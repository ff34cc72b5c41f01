"""Reads the token from the Secret's files, and says which host it may be sent to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sd_api.netguard import Guard, effective_port
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError

_MAX_BYTES = 16 * 1024


@dataclass(frozen=True)
class Credentials:
    """The content of a credentials Secret."""

    token: str = field(repr=False)

    host: str | None
    """The only host (`host` or `host:port`) that the token is sent to. None if the Secret has none.
    """


def read_credentials(folder: Path) -> Credentials:
    """Read the mounted Secret's keys `token` and `host`."""
    token = _read(folder / "token")
    if not token:
        raise LoaderError(
            Reason.SECRET_NOT_FOUND, "the credentials Secret, or its key `token`, is missing"
        )
    if not re.fullmatch(r"[!-~]+", token):
        # Checked here, since an HTTP library would quote the whole header in its error.
        raise LoaderError(
            Reason.SECRET_NOT_FOUND,
            "the credentials Secret's key `token` is not one word of printable ASCII",
        )
    return Credentials(token, _read(folder / "host").lower() or None)


def refusal(
    url: str, field: str, credentials: Credentials, guard: Guard, *, is_default_host: bool
) -> str | None:
    """Why the token must not be sent to this url; None if it may.

    field: what the message calls the url. is_default_host: a Secret that names no host is for this
    url's host.
    """
    parts = urlsplit(url)
    port = effective_port(parts)
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name
    shown = host if port == (443 if parts.scheme == "https" else 80) else f"{host}:{port}"
    allowed = credentials.host or (shown if is_default_host else None)
    if allowed is None:
        return f"the credentials Secret has no key `host`; {field}'s host is {shown}"
    if allowed not in {shown, f"{host}:{port}"}:
        # The Secret's own host is not shown: people put tokens into the wrong key.
        return f"the credentials Secret is for another host than {field}'s, {shown}"
    # Plain http is only for hosts that the administrator allows, such as a mirror in the cluster.
    if parts.scheme != "https" and not guard.allows(name, port):
        return f"tokens are not sent to {shown} over plain http"
    return None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise LoaderError(
            Reason.SECRET_NOT_FOUND, f"the credentials Secret cannot be read: {error.strerror}"
        ) from error
