"""The HTTP client of a load: allowed addresses, retries, minimum speed and token."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import httpx2
from typing_extensions import override

from sd_api import defaults
from sd_api.logins import basic
from sd_api.netguard import MAX_REDIRECTS, AddressRefusedError
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError
from sd_loader.net.credentials import read_credentials, refusal
from sd_loader.net.exchange import origin
from sd_loader.net.http_errors import RETRIES, Retries
from sd_loader.net.transport import LOADER_VERSION, PACE, TIMEOUT, GuardedTransport, Pace
from sd_loader.settings import Settings


class _HubLogin(httpx2.Auth):
    """Logs in at the mirror's own origin, unless the request has a token.

    `httpx2.BasicAuth` would replace the token, and would send the login to every host that the
    session calls, such as the one that a file was redirected to before.
    """

    def __init__(self, endpoint: str, login: str) -> None:
        self._endpoint = httpx2.URL(endpoint)
        self._header = basic(login)

    @override
    def auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Add the header; see httpx2."""
        if "Authorization" not in request.headers and origin(request.url) == origin(self._endpoint):
            request.headers["Authorization"] = self._header
        yield request


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
        for_hub: whether to log in at the mirror of the Hub. A client for users' links does not.
        """
        endpoint, login = self.settings.hub_endpoint, self.settings.logins.hub
        is_mirror = for_hub and endpoint != defaults.HUB_ENDPOINT
        return httpx2.Client(
            auth=_HubLogin(endpoint, login) if is_mirror and login else None,
            transport=GuardedTransport(self.settings, self.pace, max_bytes),
            # Compression is not accepted, so that bytes are counted and digested as in the file.
            headers={"User-Agent": f"sd-loader/{LOADER_VERSION}", "Accept-Encoding": "identity"},
            timeout=TIMEOUT,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            trust_env=False,
        )

    def check_url(self, url: str, field: str) -> None:
        """Refuse a url that is not a valid link, or that must not be called."""
        if "://" not in url:
            raise LoaderError(
                Reason.INVALID_SPEC, f"{redact_url(url)} is not an http(s) link", field=field
            )
        try:
            httpx2.URL(url)
            self.settings.guard().check_url(url)
        except httpx2.InvalidURL:
            # The cause is dropped because it quotes the url, which may contain a password.
            raise LoaderError(
                Reason.INVALID_SPEC, "the link is not well-formed", field=field
            ) from None
        except AddressRefusedError as error:
            raise LoaderError(Reason.ADDRESS_REFUSED, str(error)) from error

    def token(
        self, url: str, field: str, *, required: bool, is_default_host: bool = False
    ) -> str | None:
        """Return the token for a url. None if the load has no token.

        The token is only for the host that the Secret names. For another host, return None, or
        raise CredentialsHostMismatch if the token is `required`. is_default_host: whether a token
        without a host may be sent to this url's host.
        """
        if not self.has_token:
            return None
        credentials = read_credentials(self.settings.credentials_dir)
        why_not = refusal(
            url, field, credentials, self.settings.guard(), is_default_host=is_default_host
        )
        if why_not is None:
            return credentials.token
        if required:
            raise LoaderError(Reason.CREDENTIALS_HOST_MISMATCH, why_not)
        return None
