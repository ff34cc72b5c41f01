"""The token for a source: reads it from a Secret's files, and limits it to one host."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sd_api.default_credentials import file_of, hosts_of
from sd_api.netguard import Guard, effective_port
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings

_MAX_BYTES = 16 * 1024


@dataclass(frozen=True)
class Credentials:
    """A token, and the host that it may be sent to."""

    token: str = field(repr=False)

    host: str | None
    """`host` or `host:port`. None if the Secret names no host."""


@dataclass(frozen=True)
class DefaultToken:
    """The token for a host that is used by loads without credentials of their own."""

    token: str = field(repr=False)

    for_private: bool
    """Whether private repos of the token's owner may be loaded with it."""


def read_credentials(folder: Path) -> Credentials:
    """Read the keys `token` and `host` of the mounted Secret."""
    token = _read(folder / "token")
    if not token:
        raise LoaderError(
            Reason.SECRET_NOT_FOUND, "the credentials Secret, or its key `token`, is missing"
        )
    check_token(token, "the credentials Secret's key `token`")
    return Credentials(token, _read(folder / "host").lower() or None)


def read_default(url: str, settings: Settings) -> DefaultToken | None:
    """Return the token that is kept for a url's host. None if there is no such token.

    Raise LoaderError if the Secret for the host names another host, or if its token is malformed.
    """
    for host in hosts_of(url):
        if host in settings.own_tokens:
            return DefaultToken(settings.own_tokens[host], for_private=True)
    named_host = _named_host(url, settings)
    if named_host is None:
        return None
    secret = settings.default_credentials[named_host]
    folder = settings.default_credentials_dir
    token = _read(folder / file_of(named_host, "token"))
    own_host = _read(folder / file_of(named_host, "host")).lower()
    if not token:
        return None
    if own_host not in ("", named_host):
        raise LoaderError(
            Reason.CREDENTIALS_HOST_MISMATCH,
            f"the Secret {secret.name}, which the administrator names for {named_host}, has a"
            " key `host` that names another host; correct it",
        )
    check_token(token, f"the key `token` of the Secret {secret.name}")
    return DefaultToken(token, secret.for_private)


def empty_default(url: str, settings: Settings) -> str | None:
    """Return the name of the administrator's Secret for a url's host if the Secret has no token."""
    host = _named_host(url, settings)
    if host is None or _read(settings.default_credentials_dir / file_of(host, "token")):
        return None
    return settings.default_credentials[host].name


def _named_host(url: str, settings: Settings) -> str | None:
    """Return a url's host as the administrator's setting spells it. None if it is not in there."""
    return next((host for host in hosts_of(url) if host in settings.default_credentials), None)


def read_token_file(path: Path) -> str:
    """Return the token in the file that `--token-file` names.

    Raise LoaderError if the file has no token.
    """
    token = _read(path)
    if not token:
        raise LoaderError(Reason.SECRET_NOT_FOUND, f"{path} has no token")
    check_token(token, f"the content of {path}")
    return token


def tokens_of(settings: Settings) -> Iterator[str]:
    """Yield every token that this process can read, so that messages do not show it."""
    names = [file_of(host, "token") for host in settings.default_credentials]
    kept = [settings.default_credentials_dir / name for name in names]
    for path in (settings.credentials_dir / "token", *kept):
        with suppress(LoaderError):
            yield _read(path)
    yield from filter(None, (settings.hub_token, settings.civitai_token))


def check_token(token: str, what: str) -> None:
    """Refuse a text that must not be sent as a token. what: where the text comes from."""
    if not re.fullmatch(r"[!-~]+", token):
        # Checked here because the error of an HTTP library would quote the whole header.
        raise LoaderError(
            Reason.SECRET_NOT_FOUND, f"{what} has blanks or characters that are not printable ASCII"
        )
    if _is_of_service_account(token):
        raise LoaderError(
            Reason.SECRET_NOT_FOUND,
            f"{what} is the token of a Kubernetes service account, which is never sent to a source;"
            " use a token of the source",
        )


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

    field: name of the url in the message. is_default_host: whether a token whose Secret names no
    host may be sent to this url's host.
    """
    hosts = hosts_of(url)
    shown = hosts[0]
    allowed = credentials.host or (shown if is_default_host else None)
    if allowed is None:
        return f"the credentials Secret has no key `host`; the host of {field} is {shown}"
    if allowed not in hosts:
        # The Secret's host is not shown, because users may put the token into the wrong key.
        return f"the credentials Secret is for another host than that of {field}, {shown}"
    # Plain http is allowed only for a host that the administrator allowed, such as a mirror.
    if not is_confidential(url, guard):
        return f"tokens are not sent to {shown} over plain http"
    return None


def is_confidential(url: str, guard: Guard) -> bool:
    """Whether a token may be sent to this url: over https, or to a host that is allowed."""
    parts = urlsplit(url)
    return parts.scheme == "https" or guard.allows(parts.hostname or "", effective_port(parts))


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
