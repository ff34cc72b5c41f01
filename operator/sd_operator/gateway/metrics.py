"""The gateway's Prometheus metrics. They have their own registry and their own port."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd_operator.base.metrics import Component, add_build_info, api_requests, serve

OTHER = "other"
"""The label `route` of all calls that match no route. Their paths are unbounded."""


class GatewayMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "sdmodel_gateway_requests_total",
            "Calls of the gateway, by route and status code.",
            ["route", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "sdmodel_gateway_request_duration_seconds",
            "Time until the response to a call starts.",
            ["route"],
            registry=self.registry,
        )
        self._requests = api_requests("sdmodel_gateway_api_requests_total", self.registry)
        add_build_info(self.registry, Component.GATEWAY)

    def count_request(self, verb: str, resource: str, code: str) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, resource, code).inc()

    def count_call(self, route: str, code: int, seconds: float) -> None:
        """Count a call of the gateway."""
        self._calls.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def serve(self, address: str, port: int) -> tuple[int, Callable[[], None]]:
        """Serve /metrics in a thread; return the port and a function that stops the server."""
        return serve(self.registry, address, port)


class Measured:
    """Middleware that counts and times the calls of an application."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a call; count it when its response starts, or as a 500 if it fails before that."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, counted = time.monotonic(), False

        def count(code: int) -> None:
            nonlocal counted
            counted = True
            self._metrics.count_call(_route(scope), code, time.monotonic() - start)

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, measured)
        except Exception:
            if not counted:
                count(500)
            raise


def _route(scope: Scope) -> str:
    """Return the pattern of the route, with the mount path if it belongs to a mounted app."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return OTHER
    root = str(scope.get("root_path") or "")
    return root.removeprefix(str(scope.get("app_root_path") or "")) + str(path)
