"""HTTP calls to hosts that users name.

For a direct call, the host is resolved once, the guard checks all its addresses, and the connection
goes to one of them. For a call through a proxy, the guard checks only the url, and the proxy
resolves the host. Redirects are not followed: each would be another url to check.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from sd_api.netguard import Guard, bypasses_proxy, effective_port


class _GuardedResolver(AbstractResolver):
    """Gives aiohttp only addresses that the guard has checked."""

    def __init__(self, guard: Guard, threads: ThreadPoolExecutor) -> None:
        self._guard = guard
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a host; raise AddressRefusedError (an OSError) if it may not be called."""
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(self._threads, self._guard.addresses, host, port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
            if family is socket.AF_UNSPEC or (":" in address) == (family is socket.AF_INET6)
        ]

    async def close(self) -> None:
        """Do nothing: the threads belong to Outgoing."""


class Outgoing:
    """Makes calls, directly or through a proxy; used and closed on one event loop."""

    def __init__(
        self,
        guard: Guard,
        seconds: float,
        https_proxy: str | None = None,
        no_proxy: str = "",
        ca_file: Path | None = None,
    ) -> None:
        self._guard = guard
        self._seconds = seconds
        self._https_proxy = https_proxy
        self._no_proxy = no_proxy
        # Name resolution blocks a thread; its own threads keep it from blocking anything else.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="outgoing-dns")
        self._direct = self._session(_GuardedResolver(guard, self._threads), ca_file)
        self._proxied = self._session(None, ca_file)

    def _session(
        self, resolver: AbstractResolver | None, ca_file: Path | None
    ) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        connector = aiohttp.TCPConnector(
            resolver=resolver, ssl=context, use_dns_cache=False, force_close=True
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._seconds),
            trust_env=False,
        )

    async def close(self) -> None:
        """End all connections."""
        await self._direct.close()
        await self._proxied.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def call(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Make one call and yield the response; raise AddressRefusedError for a refused url."""
        # Check the url as aiohttp reads it: aiohttp reads some characters as digits that other
        # parsers do not, and does not ask the resolver if the host is an address.
        read = URL(url)
        parts = self._guard.check_url(str(read))
        proxy = self._proxy(parts.hostname or "", effective_port(parts))
        session = self._proxied if proxy else self._direct
        async with session.request(
            method, read, data=body, headers=headers, allow_redirects=False, proxy=proxy
        ) as response:
            yield response

    def _proxy(self, host: str, port: int) -> str | None:
        bypassed = bypasses_proxy(host, port, self._no_proxy)
        return None if bypassed else self._https_proxy
