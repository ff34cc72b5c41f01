"""The application: its routes, what wraps them, and what every error becomes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sd_operator.base.errors import ApiError
from sd_operator.base.metrics import installed_version
from sd_operator.clients.kube import Api
from sd_operator.gateway import docs, gallery, routes
from sd_operator.gateway.context import Context
from sd_operator.gateway.errors import RefusedError, refused
from sd_operator.gateway.guards import BodyLimit, SecurityHeaders
from sd_operator.gateway.metrics import Measured, Metrics
from sd_operator.gateway.settings import Settings


def create_app(settings: Settings, api: Api, metrics: Metrics | None = None) -> FastAPI:
    """The gateway over an API connection, which its lifespan opens and closes."""
    context = Context.of(settings, api)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with api:
            try:
                yield
            finally:
                await context.models.close()

    app = FastAPI(
        title="Stable Diffusion model gateway",
        version=installed_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Measured, metrics=metrics or Metrics())
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _refused)
    _add_probes(app, context)
    app.include_router(routes.router(context))
    docs.add(app, settings.public_url)
    gallery.mount(app, context)
    return app


def _add_probes(app: FastAPI, context: Context) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """Whether the process answers."""
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        """Whether anyone would be let in. Without the API server callers get a clear 503."""
        good = context.keys.readable
        return PlainTextResponse("ok" if good else "no key can be read", 200 if good else 503)


async def _refused(_: Request, error: Exception) -> Response:
    """The vendor's form of an error; retry_after where another attempt may succeed."""
    why = refused(error)
    body: dict[str, object] = {"status": "error", "message": why.message}
    headers = {}
    if why.retry_after is not None:
        body["retry_after"] = why.retry_after
        headers["Retry-After"] = str(why.retry_after)
    return JSONResponse(body, why.status, headers)
