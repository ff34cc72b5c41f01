"""The HTTP client of a load: allowed addresses, retries, minimum speed and token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd_api.default_credentials import hosts_of
from sd_api.defaults import HUB_ENDPOINT
from sd_api.netguard import AddressRefusedError
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError
from sd_loader.net.credentials import (
    empty_default,
    is_confidential,
    read_credentials,
    read_default,
    refusal,
    tokens_of,
)
from sd_loader.net.patience import PACE, RETRIES, Pace, Retries
from sd_loader.settings import Settings

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True)
class HttpClient:
    """Opens connections to the sources of one load."""

    settings: Settings

    has_token: bool = False
    """Whether the credentials folder must have a token."""

    retries: Retries = RETRIES
    """How transient failures are retried."""

    pace: Pace = PACE
    """The minimum speed of a server."""

    def session(self, *, max_bytes: int | None = None, for_hub: bool = False) -> httpx2.Client:
        """Open a client that calls only allowed addresses and has a timeout for every wait.

        max_bytes: largest response body, for callers that read whole responses into memory.
        for_hub: whether to log in at the mirror of the Hub. This must be false for users' links.
        """
        # Imported here: a load of a local file opens no session, and httpx2 takes 0.1 s to import.
        from sd_loader.net.session import open_session

        return open_session(self.settings, self.pace, max_bytes, for_hub=for_hub)

    def check_url(self, url: str, field: str) -> None:
        """Refuse a url that is not a valid link, or that must not be called."""
        if "://" not in url:
            raise LoaderError(
                Reason.INVALID_SPEC, f"{redact_url(url)} is not an http(s) link", field=field
            )
        from httpx2 import URL, InvalidURL  # imported here, as in session

        try:
            URL(url)
            self.settings.guard().check_url(url)
        except InvalidURL:
            # The cause is dropped because it quotes the url, which may contain a password.
            raise LoaderError(
                Reason.INVALID_SPEC, "the link is not well-formed", field=field
            ) from None
        except AddressRefusedError as error:
            raise LoaderError(Reason.ADDRESS_REFUSED, str(error)) from error

    def secrets(self, given: object) -> frozenset[str]:
        """Return the secrets that this client sends, and those in the urls of a request."""
        return self.settings.secrets(given, *tokens_of(self.settings))

    def token(
        self, url: str, field: str, *, required: bool, is_default_host: bool = False
    ) -> str | None:
        """Return the token for a url. None if the load has no token.

        The token is only for the host that the Secret names. For another host, return None, or
        raise CredentialsHostMismatch if the token is `required`. is_default_host: whether a token
        whose Secret names no host may be sent to this url, because it is that of the Hub's API.
        """
        if not self.has_token:
            return self._default_token(url, required=required, is_api=is_default_host)
        credentials = read_credentials(self.settings.credentials_dir)
        why_not = refusal(
            url, field, credentials, self.settings.guard(), is_default_host=is_default_host
        )
        if why_not is None:
            return credentials.token
        if required:
            raise LoaderError(Reason.CREDENTIALS_HOST_MISMATCH, why_not)
        return None

    def lists_private(self, url: str) -> bool:
        """Whether the token may be sent to the API of the Hub or Civitai that describes a model.

        Without a token the API describes public and gated models only, so a default token that is
        not for private models cannot load one. Return True if the load has no token.
        """
        if self.has_token:
            return True
        try:
            default = read_default(url, self.settings)
        except LoaderError:
            return False  # No token is usable; `token` says why if one is needed.
        return default is None or default.for_private

    @contextmanager
    def naming_default_secret(self, url: str) -> Iterator[None]:
        """If a token is missing, name in the error the administrator's Secret for the host."""
        try:
            yield
        except LoaderError as error:
            if error.reason is not Reason.AUTHENTICATION_REQUIRED or self.has_token:
                raise
            secret = empty_default(url, self.settings)
            if secret is None:
                raise
            raise LoaderError(
                error.reason,
                f"{error.message}; put the token into the key `token` of the Secret {secret} in the"
                " model's namespace, which the administrator names for this host",
            ) from error

    def _default_token(self, url: str, *, required: bool, is_api: bool) -> str | None:
        """Return the token that is kept for the url's host. None if it must not be sent there.

        A link into the Hub, such as to a file of a data set, may lead to a private repo, which only
        the API shows. So only a token for private repos is sent with such a link.
        """
        try:
            default = read_default(url, self.settings)
        except LoaderError:
            if required:
                raise
            return None
        if default is None or not is_confidential(url, self.settings.guard()):
            return None
        hub = {*hosts_of(self.settings.hub_endpoint), *hosts_of(HUB_ENDPOINT)}
        is_link_into_hub = not is_api and not hub.isdisjoint(hosts_of(url))
        return None if is_link_into_hub and not default.for_private else default.token
