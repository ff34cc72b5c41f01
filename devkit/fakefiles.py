"""A server of files on loopback, with the faults that a test asks for.

It serves plain links; `fakehub` builds the Hub on it. What was asked, and how much was served, is
recorded. Standard library only: the demo uses it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 16


@dataclass(frozen=True)
class Faults:
    """What goes wrong with a file's requests.

    fails: how many requests get `status`, None for all. cuts: how many answers end after `cut_at`
    bytes of the body. length: Content-Length, whatever the body's is. rate: bytes a second.
    range_limit: the most bytes of a range that one answer has. flips: how many answers have one
    bit of their first byte flipped. body: served instead of the file,
    whose length and digest the Hub still tells.
    """

    status: int = 200
    fails: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    redirect: str | None = None
    token: str | None = None
    cut_at: int | None = None
    cuts: int = 1
    reset: bool = False
    ignore_range: bool = False
    range_limit: int | None = None
    flips: int = 0
    etag: str | None = None
    validators: bool = True
    length: int | None = None
    chunked: bool = False
    endless: bool = False
    rate: int | None = None


@dataclass(frozen=True)
class Recorded:
    """A request as it came in. header names are lower case."""

    method: str
    path: str
    query: str
    port: int
    headers: Mapping[str, str]


class FileServer:
    """Serves files under links until it is left.

    requests, served: everything so far, served as bytes of bodies by link.
    """

    def __init__(self, *, port: int = 0, handler: type[Handler] | None = None) -> None:
        self.links: dict[str, tuple[Path | bytes, Faults]] = {}
        self.requests: list[Recorded] = []
        self.served: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._handler = handler or Handler
        self._servers = [_Server(port, self._handler, self)]
        self.host = f"127.0.0.1:{self._servers[0].server_port}"
        self.url = f"http://{self.host}"

    @property
    def bytes_served(self) -> int:
        """Bytes of file bodies sent so far."""
        return sum(self.served.values())

    def add_origin(self) -> str:
        """Serve the same on another port too; returns its host."""
        self._servers.append(_Server(0, self._handler, self))
        return f"127.0.0.1:{self._servers[-1].server_port}"

    def serve_file(self, path: str, content: Path | bytes, **faults: Any) -> str:
        """Serve a file under a link; returns the link. Serving it again replaces it."""
        self.links[path] = (content, Faults(**faults))
        return self.url + path

    def forget(self) -> None:
        """Forget the requests so far."""
        self.requests.clear()
        self.served.clear()

    def use(self, key: str) -> int:
        """How often this was used before."""
        with self._lock:
            self._used[key] += 1
            return self._used[key] - 1

    def __enter__(self) -> Self:
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, handler: type[Handler], files: FileServer) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.files = files
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._sockets: set[socket.socket] = set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave at any time."""


class Handler(BaseHTTPRequestHandler):
    """Serves links; `other` is asked for everything else."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        """Record the request and answer it."""
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.files.requests.append(
            Recorded(self.command, path, parts.query, self.server.server_port, headers)
        )
        if path in self.server.files.links:
            self._link(path)
        else:
            self.other(path, parts.query)

    do_HEAD = do_GET  # noqa: N815 - named by the base class

    def other(self, path: str, query: str) -> None:  # noqa: ARG002 - for subclasses
        """Answer what is no link."""
        self.send_json(404, {"error": "Not found"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
        """Stay silent."""

    def _link(self, path: str) -> None:
        content, faults = self.server.files.links[path]
        if self.faulty(path, faults):
            return
        body = content if isinstance(content, bytes) else content.read_bytes()
        self.send_file(path, body, faults, etag=hashlib.md5(body).hexdigest())

    def faulty(self, key: str, faults: Faults) -> bool:
        """Answer with the error that is due, if one is."""
        if faults.token and self.headers.get("Authorization") != f"Bearer {faults.token}":
            self.send_json(401, {"error": "Unauthorized"})
        elif faults.redirect is not None:
            self._send(302, {"Location": faults.redirect, "Content-Length": "0"})
        elif faults.status != 200 and (
            faults.fails is None or self.server.files.use(f"status {key}") < faults.fails
        ):
            self.send_body(faults.status, faults.headers, faults.body or b"")
        else:
            return False
        return True

    def send_json(self, status: int, value: Any) -> None:
        """Answer with a JSON document."""
        headers = {"Content-Type": "application/json"}
        self.send_body(status, headers, json.dumps(value).encode())

    def _send(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_body(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer with a body as it is."""
        self._send(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(
        self, key: str, body: bytes, faults: Faults, *, etag: str, commit: str | None = None
    ) -> None:
        """Answer with a file, or the range of it that was asked for, with its faults."""
        headers = {"Accept-Ranges": "bytes", **faults.headers}
        etag = faults.etag or f'"{etag}"'
        if faults.validators:
            headers["ETag"] = etag
        if commit is not None:
            headers["X-Repo-Commit"] = commit
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if (
            wanted
            and not faults.ignore_range
            and self.headers.get("If-Range", etag) == etag
            and wanted.startswith("bytes=")
        ):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            if start >= len(body):
                self.send_body(416, {**headers, "Content-Range": f"bytes */{len(body)}"}, b"")
                return
            total = len(body)
            body = body[: int(last) + 1 if last else total]
            body = body[: total if faults.range_limit is None else start + faults.range_limit]
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{total}"
        if faults.chunked or faults.endless:
            headers["Transfer-Encoding"] = "chunked"
        else:
            length = len(body) - start if faults.length is None else faults.length
            headers["Content-Length"] = str(length)
        if faults.flips and self.server.files.use(f"flip {key}") < faults.flips:
            body = body[:start] + bytes([body[start] ^ 1]) + body[start + 1 :]
        self._send(status, headers)
        if self.command != "HEAD":
            self._stream(key, body[start:], faults)

    def _stream(self, key: str, body: bytes, faults: Faults) -> None:
        chunked = faults.chunked or faults.endless
        cut = faults.cut_at is not None and self.server.files.use(f"cut {key}") < faults.cuts
        left = faults.cut_at if cut else None
        for chunk in _chunks(body, faults):
            if self.server.stopping.is_set():
                self.close_connection = True
                return
            piece = chunk if left is None else chunk[:left]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self.server.files.served[key] += len(piece)
            if left is not None:
                left -= len(piece)
                if left == 0:
                    self._hang_up(reset=faults.reset)
                    return
            if faults.rate:
                time.sleep(len(piece) / faults.rate)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        if faults.length is not None:
            self.close_connection = True

    def _hang_up(self, *, reset: bool) -> None:
        self.wfile.flush()
        self.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


def _chunks(body: bytes, faults: Faults) -> Iterator[bytes]:
    size = CHUNK if faults.rate is None else max(1, min(CHUNK, faults.rate // 20))
    while True:
        for start in range(0, len(body), size):
            yield body[start : start + size]
        if not faults.endless:
            return
