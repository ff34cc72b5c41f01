"""Opens the sessions of a load: what every request has, and the login at a mirror of the Hub."""

from __future__ import annotations

from collections.abc import Generator

import httpx2
from typing_extensions import override

from sd_api import defaults
from sd_api.logins import basic
from sd_api.netguard import MAX_REDIRECTS
from sd_loader.net.exchange import origin
from sd_loader.net.patience import Pace
from sd_loader.net.transport import LOADER_VERSION, TIMEOUT, GuardedTransport
from sd_loader.settings import Settings


class _HubLogin(httpx2.Auth):
    """Logs in at the mirror's own origin, unless the request has a token.

    `httpx2.BasicAuth` would replace the token, and would send the login to every host that the
    session calls, such as a host to which the mirror redirected an earlier request.
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


def open_session(
    settings: Settings, pace: Pace, max_bytes: int | None, *, for_hub: bool
) -> httpx2.Client:
    """Open the session that `HttpClient.session` describes."""
    endpoint, login = settings.hub_endpoint, settings.logins.hub
    is_mirror = for_hub and endpoint != defaults.HUB_ENDPOINT
    return httpx2.Client(
        auth=_HubLogin(endpoint, login) if is_mirror and login else None,
        transport=GuardedTransport(settings, pace, max_bytes),
        # Compression is not accepted, so that bytes are counted and digested as in the file.
        headers={"User-Agent": f"sd-loader/{LOADER_VERSION}", "Accept-Encoding": "identity"},
        timeout=TIMEOUT,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        trust_env=False,
    )
