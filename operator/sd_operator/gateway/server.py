"""Configures the HTTP server of the application."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from sd_operator.gateway.settings import GatewaySettings

GRACE_SECONDS = 5
"""How long open streams to browsers delay a shutdown; the browsers then reconnect."""


def server(app: FastAPI, settings: GatewaySettings) -> uvicorn.Server:
    """Return a server for the application; the caller runs it."""
    config = uvicorn.Config(
        app,
        host=settings.bind_address,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)
