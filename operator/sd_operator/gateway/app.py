"""Builds the gateway's application: routes, middleware and error responses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sd_api.netguard import Resolver, resolve
from sd_operator.base.errors import ApiError
from sd_operator.base.metrics import installed_version
from sd_operator.clients.kube import Api
from sd_operator.gateway import docs, gallery, routes
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import RefusedError, map_error
from sd_operator.gateway.guards import BodyLimit, SecurityHeaders
from sd_operator.gateway.metrics import GatewayMetrics, Measured
from sd_operator.gateway.settings import GatewaySettings


def create_app(
    settings: GatewaySettings,
    api: Api,
    metrics: GatewayMetrics | None = None,
    resolver: Resolver = resolve,
) -> FastAPI:
    """Return the gateway's application; its lifespan opens and closes the API connection."""
    context = Context.of(settings, api, resolver=resolver)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with api:
            try:
                yield
            finally:
                await context.close()

    app = FastAPI(
        title="Stable Diffusion model gateway",
        version=installed_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Measured, metrics=metrics or GatewayMetrics())
    for kind in (RefusedError, ApiError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _error_response)
    _add_probes(app, context)
    endpoints = routes.router(context)
    app.include_router(endpoints)
    app.include_router(routes.others(endpoints))
    docs.add(app, settings.public_url)
    gallery.mount(app, context)
    return app


def _add_probes(app: FastAPI, context: Context) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """Report that the process is alive."""
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        """Report whether the key file has a valid key.

        The API server is not checked: while it is unavailable, callers get a 503 with the cause.
        """
        if context.keys.readable:
            return PlainTextResponse("ok")
        return PlainTextResponse("the key file has no valid key, or cannot be read", 503)


async def _error_response(_: Request, error: Exception) -> Response:
    """Return an error as JSON in the form of the vendor's API, with retry_after if it is known."""
    refused = map_error(error)
    body = {"status": "error", "message": refused.message, **refused.details}
    # An HTTPException of status 405 has the header Allow.
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if refused.retry_after is not None:
        body["retry_after"] = refused.retry_after
        headers["Retry-After"] = str(refused.retry_after)
    return JSONResponse(body, refused.status, headers)
