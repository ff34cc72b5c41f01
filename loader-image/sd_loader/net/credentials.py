"""The token for a source: reads it from the Secret's files, and limits it to one host."""

from __future__ import annotations

import base64
import json
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
    """A token, and the host that it may be sent to."""

    token: str = field(repr=False)

    host: str | None
    """`host` or `host:port`. None if the Secret names no host."""


def read_credentials(folder: Path) -> Credentials:
    """Read the keys `token` and `host` of the mounted Secret."""
    token = _read(folder / "token")
    if not token:
        raise LoaderError(
            Reason.SECRET_NOT_FOUND, "the credentials Secret, or its key `token`, is missing"
        )
    if not re.fullmatch(r"[!-~]+", token):
        # Checked here because the error of an HTTP library would quote the whole header.
        raise LoaderError(
            Reason.SECRET_NOT_FOUND,
            "the credentials Secret's key `token` is not one word of printable ASCII",
        )
    if _is_of_service_account(token):
        raise LoaderError(
            Reason.SECRET_NOT_FOUND,
            "the credentials Secret's key `token` is the token of a Kubernetes service account,"
            " which is never sent to a source; name a Secret with a token of the source",
        )
    return Credentials(token, _read(folder / "host").lower() or None)


def _is_of_service_account(token: str) -> bool:
    """Whether the token is a JWT of a service account, whatever type its Secret has.

    The operator may not read Secrets, so the type is not known. A copy in another Secret is found
    in this way, too.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return False
    if not isinstance(claims, dict):
        return False
    subject = str(claims.get("sub", ""))
    return subject.startswith("system:serviceaccount:") or any(
        name.partition("/")[0] == "kubernetes.io" for name in claims
    )


def refusal(
    url: str, field: str, credentials: Credentials, guard: Guard, *, is_default_host: bool
) -> str | None:
    """Return why the token must not be sent to this url. None if it may be sent.

    field: name of the url in the message. is_default_host: whether a token without a host may be
    sent to this url's host.
    """
    parts = urlsplit(url)
    port = effective_port(parts)
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name
    shown = host if port == (443 if parts.scheme == "https" else 80) else f"{host}:{port}"
    allowed = credentials.host or (shown if is_default_host else None)
    if allowed is None:
        return f"the credentials Secret has no key `host`; the host of {field} is {shown}"
    if allowed not in {shown, f"{host}:{port}"}:
        # The Secret's host is not shown, because users may put the token into the wrong key.
        return f"the credentials Secret is for another host than that of {field}, {shown}"
    # Plain http is allowed only for a host that the administrator allowed, such as a mirror.
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
