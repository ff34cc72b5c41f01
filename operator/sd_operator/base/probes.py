"""/healthz and /readyz, served from a thread: a stuck event loop could not report itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from sd_operator.base.httpd import Server

BEAT_SECONDS = 1.0
SILENCE_MAX_SECONDS = 60.0


class Probes:
    """Healthy while the event loop runs; ready once the start-up is over."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        can_serve: Callable[[], bool] = lambda: True,
    ) -> None:
        self._clock = clock
        self._last_beat = clock()
        self._can_serve = can_serve
        """What else the process needs to be ready. It is called in a thread."""
        self.ready = False

    def beat(self) -> None:
        """Record that the event loop is alive."""
        self._last_beat = self._clock()

    def get_ready(self) -> None:
        """Record that the start-up is over."""
        self.ready = True

    @property
    def healthy(self) -> bool:
        """Whether the event loop was alive a moment ago."""
        return self._clock() - self._last_beat < SILENCE_MAX_SECONDS

    @property
    def serving(self) -> bool:
        """Whether the process can do its work."""
        return self.ready and self.healthy and self._can_serve()

    def serve(self, address: str, port: int) -> tuple[int, Callable[[], None]]:
        """Serve the probes from a thread; return the port and a function that stops it."""
        probes = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers = {"/healthz": lambda: probes.healthy, "/readyz": lambda: probes.serving}
                answer = answers.get(self.path)
                good = None if answer is None else answer()
                status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
                self.send_response(HTTPStatus.NOT_FOUND if good is None else status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
                """Log nothing."""

        return Server(address, port, Handler).start("probes")
