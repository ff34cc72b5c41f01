"""How sources are called: which addresses, how patiently, and with whose token."""

from __future__ import annotations

from dataclasses import dataclass

import httpx2

from sd_api.netguard import MAX_REDIRECTS, AddressRefusedError
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError
from sd_loader.net.credentials import read_credentials, refusal
from sd_loader.net.http_errors import RETRIES, Retries
from sd_loader.net.transport import LOADER_VERSION, PACE, TIMEOUT, GuardedTransport, Pace
from sd_loader.settings import Settings


@dataclass(frozen=True)
class HttpClient:
    """The way to all sources of one load."""

    settings: Settings

    has_token: bool = False
    """Whether a token is expected in the credentials folder."""

    retries: Retries = RETRIES
    """How often a transient failure is tried again."""

    pace: Pace = PACE
    """The slowest that a server may be."""

    def session(self, *, max_answer: int | None = None) -> httpx2.Client:
        """Connections that call only allowed addresses and never wait without limit.

        max_answer: of bytes, for callers that read whole responses into memory.
        """
        return httpx2.Client(
            transport=GuardedTransport(self.settings, self.pace, max_answer),
            # Without compression the bytes counted, resumed and digested are the file's own.
            headers={"User-Agent": f"sd-loader/{LOADER_VERSION}", "Accept-Encoding": "identity"},
            timeout=TIMEOUT,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            trust_env=False,
        )

    def check_url(self, url: str, field: str) -> None:
        """Refuse a url that is not a link, or must not be called, before anything else happens."""
        if "://" not in url:
            raise LoaderError(
                Reason.INVALID_SPEC, f"{redact_url(url)} is not an http(s) link", field=field
            )
        try:
            httpx2.URL(url)
            self.settings.guard().check_url(url)
        except httpx2.InvalidURL:
            # Without its cause, which quotes the url: a password with a slash is taken for a port.
            raise LoaderError(
                Reason.INVALID_SPEC, "the link is not well-formed", field=field
            ) from None
        except AddressRefusedError as error:
            raise LoaderError(Reason.ADDRESS_REFUSED, str(error)) from error

    def token(
        self, url: str, field: str, *, required: bool, is_default_host: bool = False
    ) -> str | None:
        """The token for a url, or None if the load has none.

        The token goes only to the host that the Secret names. For another host the result is None,
        or CredentialsHostMismatch if the token is `required`. is_default_host: a Secret that names
        no host is for this url's host.
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
