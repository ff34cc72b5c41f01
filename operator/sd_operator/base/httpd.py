"""A small HTTP server in a thread, for probes and metrics.

Anybody who reaches its port may leave requests unfinished, so the number of its connections and the
time of each are bounded.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class Server(ThreadingHTTPServer):
    """A server with a thread for each connection. A connection serves one request.

    A connection that is out of time, or that must make room for a new one, is shut down: its thread
    then has nothing to read and cannot write, so it ends.
    """

    max_connections = 32
    """Limit of open connections. One more replaces the connection that has been open longest."""
    deadline_seconds = 10.0
    """How long a connection may take, from its start to the end of the response."""
    request_queue_size = 1024
    """How many connections may wait until the server accepts them (the listen backlog).

    The kernel ignores further ones, and the client's TCP tries again after 1 s.
    """

    def __init__(
        self, address: str, port: int, handler: Callable[..., BaseHTTPRequestHandler]
    ) -> None:
        self._open: dict[socket.socket, float] = {}
        """When each open connection is out of time."""
        self._changed = threading.Condition()
        super().__init__((address, port), handler)

    def start(self, name: str) -> tuple[int, Callable[[], None]]:
        """Serve from a thread of this name; return the port and a function that stops it."""
        thread = threading.Thread(
            target=self.serve_forever, args=(POLL_SECONDS,), name=name, daemon=True
        )
        thread.start()

        def stop() -> None:
            self.shutdown()
            self.server_close()
            thread.join()

        return self.server_port, stop

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        """Wait until there is room for a connection, then serve it in a thread."""
        with self._changed:
            while len(self._open) >= self.max_connections:
                first = next(iter(self._open))
                _shut_down(first)
                # If its thread is busy and ends later, the next round shuts down another one.
                self._open[first] = self._open.pop(first)
                self._changed.wait(POLL_SECONDS)
            self._open[request] = time.monotonic() + self.deadline_seconds
        super().process_request(request, client_address)

    @override
    def close_request(self, request: Any) -> None:
        """Close a connection, so that it no longer counts towards max_connections."""
        with self._changed:
            self._open.pop(request, None)
            super().close_request(request)
            self._changed.notify()

    @override
    def service_actions(self) -> None:
        """Shut down the connections that are out of time; runs after each poll."""
        with self._changed:
            for request, deadline in self._open.items():
                if deadline <= time.monotonic():
                    _shut_down(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error, unless the error is that the client or the server ended the connection."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request to port %d failed", self.server_port)


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client has ended it already
        connection.shutdown(socket.SHUT_RDWR)
