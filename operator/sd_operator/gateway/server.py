"""How the application is served."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from sd_operator.gateway.settings import Settings

GRACE_SECONDS = 5
"""What streams to browsers are left at the end; they come back to another replica."""


def server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server that is still to be run."""
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
