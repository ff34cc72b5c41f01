"""A file server on loopback, with faults that tests choose.

For example:

    with FileServer() as server:
        link = server.serve_file("/model", path, cut_at=1000)
        assert urlopen(link).read(1000)
        assert server.requests[0].path == "/model"
        assert server.bytes_served == 1000

`fakehub` and `fakecivitai` extend the server. This module needs only the standard library, because
the demo uses it too.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from devkit.loopback import Answer, HangUpError, Loopback, Request, ResetError

CHUNK = 1 << 16


@dataclass(frozen=True)
class Faults:
    """The faults of the responses for one file."""

    status: int = 200
    """The status that is returned instead of the file. 200: the file is returned."""
    fails: int | None = None
    """How many requests get `status`; None means all."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """The content to send instead of the file. The fake sites' APIs still state the file's size."""
    redirect: str | None = None
    token: str | None = None
    """The bearer token that a request must carry."""
    cut_at: int | None = None
    """How many bytes of the body are sent before the connection is closed."""
    cuts: int = 1
    """How many responses are cut."""
    reset: bool = False
    """Whether the connection is cut with a TCP reset."""
    ignore_range: bool = False
    range_limit: int | None = None
    """The largest range, in bytes, that one response contains."""
    flips: int = 0
    """How many responses have one bit of their first byte flipped."""
    etag: str | None = None
    validators: bool = True
    """Whether responses have an ETag."""
    length: int | None = None
    """The Content-Length to state, which may differ from the body's length."""
    chunked: bool = False
    endless: bool = False
    rate: int | None = None
    """The rate limit in bytes per second."""


class FileServer:
    """Serves files at links until its context ends."""

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.links: dict[str, tuple[Path | bytes, Faults]] = {}
        self.requests: list[Request] = []
        self.served: Counter[str] = Counter()
        """The bytes of bodies that were handed to a connection, by link."""
        self._used: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._running = False
        self._address = address
        self._origins = [Loopback(self._respond, address=address, port=port, tls=tls)]
        self.port = self._origins[0].port
        self.host = self._origins[0].host
        self.url = self._origins[0].url

    @property
    def bytes_served(self) -> int:
        """The bytes of all file bodies that were handed to a connection."""
        return sum(self.served.values())

    def add_origin(self) -> str:
        """Serve the same files on another port too; return its host and port."""
        origin = Loopback(self._respond, address=self._address)
        self._origins.append(origin)
        if self._running:
            origin.start()
        return origin.host

    def serve_file(self, path: str, content: Path | bytes, **faults: Any) -> str:
        """Serve a file at a path and return the link; a second call for the path replaces it."""
        self.links[path] = (content, Faults(**faults))
        return self.url + path

    def forget(self) -> None:
        """Forget all requests and byte counts."""
        self.requests.clear()
        self.served.clear()

    def __enter__(self) -> Self:
        self._running = True
        for origin in self._origins:
            origin.start()
        return self

    def __exit__(self, *_: object) -> None:
        for origin in self._origins:
            origin.stop()

    def _respond(self, request: Request) -> Answer:
        self.requests.append(request)
        if request.path in self.links:
            return self._link(request)
        return self.other(request)

    def other(self, request: Request) -> Answer:  # noqa: ARG002 - for subclasses
        """Answer a request for a path that has no file; subclasses override this."""
        return json_answer(404, {"error": "Not found"})

    def _link(self, request: Request) -> Answer:
        content, faults = self.links[request.path]
        failed = self.failure(request, request.path, faults)
        if failed is not None:
            return failed
        body = content if isinstance(content, bytes) else content.read_bytes()
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return self.file_answer(request, request.path, body, faults, etag=etag)

    def failure(self, request: Request, key: str, faults: Faults) -> Answer | None:
        """Return the error or redirect that the faults ask for; None if they ask for neither."""
        if faults.token and request.headers.get("authorization") != f"Bearer {faults.token}":
            return json_answer(401, {"error": "Unauthorized"})
        if faults.redirect is not None:
            return Answer(302, headers={"Location": faults.redirect})
        if faults.status != 200 and (
            faults.fails is None or self._use(f"status {key}") < faults.fails
        ):
            return Answer(faults.status, faults.body or b"", faults.headers)
        return None

    def file_answer(
        self, request: Request, key: str, body: bytes, faults: Faults, *, etag: str
    ) -> Answer:
        """Answer with a file or the requested range of it, with the faults."""
        etag = faults.etag or f'"{etag}"'
        good = honest(_ranged(request, faults), body, {"ETag": etag})
        if not faults.validators:
            good = good.but(ETag="")
        headers = {"Accept-Ranges": "bytes", **faults.headers, **good.headers}
        if good.status == 416:
            return Answer(416, headers=headers)
        body = good.body
        if faults.chunked or faults.endless:
            del headers["Content-Length"]
            headers["Transfer-Encoding"] = "chunked"
        elif faults.length is not None:
            headers["Content-Length"] = str(faults.length)
        if faults.flips and self._use(f"flip {key}") < faults.flips:
            body = bytes([body[0] ^ 1]) + body[1:]
        return Answer(good.status, self._stream(key, body, faults), headers)

    def _stream(self, key: str, body: bytes, faults: Faults) -> Iterator[bytes]:
        chunked = faults.chunked or faults.endless
        cut = faults.cut_at is not None and self._use(f"cut {key}") < faults.cuts
        left = faults.cut_at if cut else None
        for chunk in _chunks(body, faults):
            piece = chunk if left is None else chunk[:left]
            # Count first: a test may read the count as soon as the client has the last byte.
            self.served[key] += len(piece)
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
            if left is not None:
                left -= len(piece)
                if left == 0:
                    raise ResetError if faults.reset else HangUpError
            if faults.rate:
                time.sleep(len(piece) / faults.rate)
        if chunked:
            yield b"0\r\n\r\n"

    def _use(self, key: str) -> int:
        """Count a use of a key; return how many uses came before."""
        with self._lock:
            self._used[key] += 1
            return self._used[key] - 1


def json_answer(status: int, value: Any, **headers: str) -> Answer:
    """Answer with a JSON document; `_` in a header's name stands for `-`."""
    extra = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **extra})


def honest(request: Request, content: bytes, version: Mapping[str, str]) -> Answer:
    """Answer without any fault; `version` is the header with the file's version, such as ETag."""
    condition = request.headers.get("if-range")
    wanted = re.match(r"bytes=(\d+)-(\d*)$", request.headers.get("range", ""))
    if wanted is None or (condition is not None and condition not in version.values()):
        return Answer(200, content, {**version, "Content-Length": str(len(content))})
    start, size = int(wanted[1]), len(content)
    if start >= size:
        headers = {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
        return Answer(416, b"", {**version, **headers})
    body = content[start : int(wanted[2]) + 1 if wanted[2] else None]
    place = f"bytes {start}-{start + len(body) - 1}/{size}"
    headers = {"Content-Range": place, "Content-Length": str(len(body))}
    return Answer(206, body, {**version, **headers})


def _ranged(request: Request, faults: Faults) -> Request:
    """Return the request with its range as these faults change it."""
    headers = dict(request.headers)
    first, _, last = headers.get("range", "").removeprefix("bytes=").partition("-")
    if faults.ignore_range:
        headers.pop("range", None)
    elif faults.range_limit is not None and first:
        most = int(first) + faults.range_limit - 1
        headers["range"] = f"bytes={first}-{min(int(last), most) if last else most}"
    return replace(request, headers=headers)


def _chunks(body: bytes, faults: Faults) -> Iterator[bytes]:
    size = CHUNK if faults.rate is None else max(1, min(CHUNK, faults.rate // 20))
    while True:
        for start in range(0, len(body), size):
            yield body[start : start + size]
        if not faults.endless:
            return
