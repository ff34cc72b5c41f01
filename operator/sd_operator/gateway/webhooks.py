"""Refuses webhooks that the operator would never call."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from sd_api.netguard import (
    AddressRefusedError,
    Guard,
    Resolver,
    bypasses_proxy,
    effective_port,
    resolve,
)
from sd_api.url_forms import LINK_PATTERN
from sd_operator.gateway.errors import FieldRefusedError
from sd_operator.gateway.settings import GatewaySettings

LOOKUP_SECONDS = 2.0
"""How long a request waits for the addresses of its webhook's host."""


class WebhookRefusedError(FieldRefusedError):
    """The operator would never call this webhook."""

    def __init__(self, why: AddressRefusedError) -> None:
        super().__init__(
            400,
            "spec.webhook",
            f"spec.webhook is refused: {why}; use a public https address, or ask the administrator"
            " to allow the host",
        )


class WebhookCheck:
    """Checks webhooks as the operator does: with the same address guard and the same proxy."""

    def __init__(self, settings: GatewaySettings, resolver: Resolver = resolve) -> None:
        self._guard = Guard(settings.allowed_hosts, resolver)
        self._has_proxy = settings.https_proxy is not None
        self._no_proxy = settings.no_proxy
        # A DNS lookup blocks its thread, even after the request has stopped waiting for it, so
        # lookups have their own threads.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="webhook-dns")

    def close(self) -> None:
        """Cancel the lookups that have not started, and do not wait for the others."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self, url: str | None) -> None:
        """Raise WebhookRefusedError if the guard refuses the url, or all addresses of its host.

        If the lookup fails or takes too long, the webhook is accepted: the host may exist later,
        and the operator checks each call again. A text that is not a link is not checked here: the
        API server refuses it.
        """
        if url is None or not re.search(LINK_PATTERN, url):
            return
        try:
            parts = self._guard.check_url(url)
            host, port = parts.hostname or "", effective_port(parts)
            if self._has_proxy and not bypasses_proxy(host, port, self._no_proxy):
                return  # The proxy resolves the name.
            await self._check_addresses(host, port)
        except AddressRefusedError as error:
            raise WebhookRefusedError(error) from None

    async def _check_addresses(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(self._threads, self._guard.check_any_address, host, port)
        try:
            await asyncio.wait_for(lookup, LOOKUP_SECONDS)
        except AddressRefusedError:
            raise
        except (OSError, TimeoutError):
            return
