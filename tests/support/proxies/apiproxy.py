"""A reverse proxy in front of an API server; subclasses change how it handles requests.

For example:

    class Slow(ApiProxy):
        async def handle(self, request, body):
            await asyncio.sleep(1)
            return await self.forward(request, body)

    with Slow(*credentials(cluster.kubeconfig), tmp_path / "proxy.kubeconfig") as proxy:
        cluster.start_operator(KUBECONFIG=str(proxy.kubeconfig))
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from tests.support.kube.kubeconfig import write_kubeconfig

_HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding", "authorization"}


@dataclass
class ApiProxy:
    """Forwards requests while its context lasts."""

    server: str
    token: str
    """The token that is sent with every request, whoever the client is."""
    ca: str
    kubeconfig: Path
    """The kubeconfig with which clients reach the proxy."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        write_kubeconfig(self.kubeconfig, f"http://127.0.0.1:{port}")
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Answer a request; subclasses override this."""
        return await self.forward(request, body)

    async def forward(
        self,
        request: web.Request,
        body: bytes,
        before_chunk: Callable[[], Awaitable[None]] | None = None,
    ) -> web.StreamResponse:
        """Send a request to the API server, and pass its response on as it arrives."""
        async with self.ask(request, body) as answer:
            response = answer_head(answer)
            with contextlib.suppress(ConnectionResetError):  # the client left
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if before_chunk is not None:
                        await before_chunk()
                    await response.write(chunk)
                await response.write_eof()
        return response

    def ask(
        self, request: web.Request, body: bytes
    ) -> aiohttp.client._BaseRequestContextManager[aiohttp.ClientResponse]:
        """Return a request to the API server, with the proxy's token.

        `async with` sends it and gives the response.
        """
        kept = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        kept["Authorization"] = f"Bearer {self.token}"
        return self._session.request(
            request.method,
            self.server + request.path_qs,
            data=body or None,
            headers=kept,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _start(self) -> int:
        context = ssl.create_default_context(cadata=self.ca)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.25)  # aiohttp recommends to wait while TLS connections close

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        return await self.handle(request, await request.read())


def answer_head(answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Copy status and headers of a response that is passed on."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for key, value in answer.headers.items():
        if key.lower() not in _HOP_BY_HOP:
            response.headers[key] = value
    return response


def failure(code: int, reason: str, message: str, **headers: str) -> web.Response:
    """Return an error as Kubernetes words it."""
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response(status, status=code, headers=headers)
