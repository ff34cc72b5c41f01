"""Configures the HTTP server of the application."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from sd_operator.base.probes import BEAT_SECONDS, Probes
from sd_operator.gateway.connections import Bounds, Connection
from sd_operator.gateway.settings import GatewaySettings

GRACE_SECONDS = 5
"""Maximum time that open streams to browsers delay a shutdown. The browsers then reconnect."""
BACKLOG = 256
"""The listen backlog. asyncio accepts up to this many connections in a row before `Bounds` counts
the first of them."""


def server(app: FastAPI, settings: GatewaySettings, probes: Probes | None = None) -> uvicorn.Server:
    """Return a server for the application; the caller runs it."""

    class BoundConnection(Connection):
        bounds = Bounds(
            settings.max_connections,
            settings.max_connections_per_address,
            settings.trusted_proxies,
        )

    async def beat() -> None:
        if probes is not None:
            probes.beat()
            probes.get_ready()

    config = uvicorn.Config(
        app,
        host=settings.bind_address,
        port=settings.port,
        http=BoundConnection,
        # A connection that became a WebSocket would have no bounds.
        ws="none",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=GRACE_SECONDS,
        callback_notify=beat,
        timeout_notify=int(BEAT_SECONDS),
    )
    return uvicorn.Server(config)
