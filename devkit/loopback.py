"""An HTTP server on loopback that answers with a function; every fake server is built on it.

For example:

    def answer(request: Request) -> Answer:
        return Answer(200, b"hello") if request.path == "/" else Answer(404)

    with Loopback(answer) as server:
        assert urlopen(server.url).read() == b"hello"
        assert [request.path for request in server.requests] == ["/"]

The function may also return bytes or an iterator of bytes. They are sent unchanged, and then the
connection is closed; this way a server can break every rule of HTTP. The module needs only the
standard library.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

POLL_SECONDS = 0.02
DRAIN_SECONDS = 5.0
IDLE_SECONDS = 60.0


class HangUpError(Exception):
    """Raised in an answer to close the connection without another byte."""


class ResetError(Exception):
    """Raise this in the answer function, or in its body, to end the connection with a TCP reset."""


@dataclass(frozen=True)
class Request:
    """A received request; header names are in lower case."""

    number: int
    """How many requests the server received before this one."""
    method: str
    target: str
    """The path and query, as they were sent."""
    headers: Mapping[str, str]
    body: bytes
    port: int
    """The port that received the request."""

    @property
    def path(self) -> str:
        """The path, unquoted."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> str:
        """The query, as it was sent."""
        return urlsplit(self.target).query


@dataclass(frozen=True)
class Answer:
    """A response; an iterable body without Content-Length ends when the connection is closed."""

    status: int | str = 200
    """The status code, or the code and the reason phrase."""
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def head(self) -> bytes:
        """Return the bytes before the body."""
        status = self.status
        if isinstance(status, int):
            status = f"{status} {responses.get(status, '')}"
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in self.headers.items())]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()

    def whole(self) -> bytes:
        """Return head and body as bytes, to send them unchanged."""
        return self.head() + b"".join(self.pieces())

    def pieces(self) -> Iterable[bytes]:
        """Return the body as pieces."""
        return (self.body,) if isinstance(self.body, bytes) else self.body

    def but(
        self, body: bytes | None = None, status: int | str | None = None, **headers: str
    ) -> Answer:
        """Return a changed copy. `_` in a header's name stands for `-`; the value "" removes it."""
        changed = {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        return replace(
            self,
            status=self.status if status is None else status,
            headers={name: value for name, value in changed.items() if value},
            body=self.body if body is None else body,
        )


Respond = Callable[[Request], Answer | bytes | Iterable[bytes]]


class Loopback:
    """Listens from its creation, and answers between start and stop."""

    def __init__(
        self,
        respond: Respond,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self._respond = respond
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._http = _HttpServer(self, address, port)
        if tls is not None:
            self._http.socket = tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(POLL_SECONDS,), daemon=True
        )
        self.port = self._http.server_port
        self.host = f"{address}:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"

    def start(self) -> None:
        """Start answering requests."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the server and close every connection."""
        self._stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._http.close_connections()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def stopping(self) -> bool:
        """Whether the server is stopping."""
        return self._stopping.is_set()

    def pause(self, seconds: float) -> None:
        """Wait within an answer; return early if the server stops."""
        self._stopping.wait(seconds)

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Any:
        """Record a request and answer it."""
        with self._lock:
            request = Request(len(self.requests), method, target, headers, body, self.port)
            self.requests.append(request)
        return self._respond(request)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: Loopback, address: str, port: int) -> None:
        self.owner = owner
        self._connections: set[socket.socket] = set()
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing, because clients may disconnect at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: _HttpServer

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        try:
            answer = self.server.owner.answer(self.command, self.path, headers, body)
            if isinstance(answer, Answer):
                self._send(answer)
            else:
                self._send_raw((answer,) if isinstance(answer, bytes) else answer)
        except HangUpError:
            self.close_connection = True
        except ResetError:
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _send(self, answer: Answer) -> None:
        headers = {"Date": formatdate(usegmt=True), **answer.headers}
        if "Content-Length" not in headers and "Transfer-Encoding" not in headers:
            if isinstance(answer.body, bytes):
                headers["Content-Length"] = str(len(answer.body))
            else:
                headers["Connection"] = "close"
        self.close_connection |= headers.get("Connection") == "close"
        self.wfile.write(replace(answer, headers=headers).head())
        if self.command == "HEAD":
            return
        sent = self._send_pieces(answer.pieces())
        # If Content-Length is wrong, the client cannot find the start of the next answer.
        self.close_connection |= headers.get("Content-Length", str(sent)) != str(sent)

    def _send_raw(self, pieces: Iterable[bytes]) -> None:
        self.close_connection = True
        self._send_pieces(pieces)
        # Closing now could reset the connection, and the client would lose unread bytes.
        self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline and self.connection.recv(1 << 16):
            pass

    def _send_pieces(self, pieces: Iterable[bytes]) -> int:
        sent = 0
        for piece in pieces:
            if self.server.owner.stopping:
                raise HangUpError
            self.wfile.write(piece)
            sent += len(piece)
        return sent

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
        """Log nothing."""

    do_CONNECT = do_DELETE = do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = _answer  # noqa: N815
