"""A server whose every answer is the bytes that a test says: right ones, or wrong in any way."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Self

DAY = 24 * 3600


class TornError(Exception):
    """Raised by an answer: the connection ends with a RST."""


@dataclass(frozen=True)
class Asked:
    """A request as it came in. number: how many came before it. header names are lower case."""

    number: int
    path: str
    headers: Mapping[str, str]

    @property
    def start(self) -> int | None:
        """The first byte of the range that is asked for."""
        found = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Answer:
    """A status line, headers and a body, whether they agree or not."""

    status: str
    headers: Mapping[str, str]
    body: bytes

    def head(self) -> bytes:
        """What comes before the body."""
        lines = [f"HTTP/1.1 {self.status}", *(f"{k}: {v}" for k, v in self.headers.items())]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()

    def whole(self) -> bytes:
        """Everything."""
        return self.head() + self.body

    def but(self, body: bytes | None = None, status: str | None = None, **headers: str) -> Answer:
        """Another status or body, and other headers: `_` stands for `-`, an empty one is none."""
        changed = {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        return replace(
            self,
            status=self.status if status is None else status,
            headers={name: value for name, value in changed.items() if value},
            body=self.body if body is None else body,
        )


def honest(asked: Asked, content: bytes, version: Mapping[str, str] | None = None) -> Answer:
    """What a good server answers. version: the header that tells its version; an ETag if absent."""
    version = {"ETag": '"1"'} if version is None else version
    common = {"Date": formatdate(usegmt=True), "Connection": "close", **version}
    condition = asked.headers.get("if-range")
    if asked.start is None or (condition is not None and condition not in version.values()):
        return Answer("200 OK", {**common, "Content-Length": str(len(content))}, content)
    if asked.start >= len(content):
        headers = {**common, "Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}
        return Answer("416 Range Not Satisfiable", headers, b"")
    last = asked.headers["range"].partition("-")[2]
    body = content[asked.start : int(last) + 1 if last else None]
    end = asked.start + len(body) - 1
    headers = {
        **common,
        "Content-Range": f"bytes {asked.start}-{end}/{len(content)}",
        "Content-Length": str(len(body)),
    }
    return Answer("206 Partial Content", headers, body)


Respond = Callable[[Asked], bytes | Iterable[bytes]]


@dataclass
class Wire:
    """Answers one request a connection, until it is left. asked: everything so far."""

    respond: Respond
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self._left = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def pause(self, seconds: float) -> None:
        """Let time pass in an answer, unless the server is left."""
        self._left.wait(seconds)

    def _serve(self) -> None:
        while not self._left.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(1 << 16)
                if not received:
                    return
                request += received
            lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:])
            path = lines[0].split()[1]
            asked = Asked(
                len(self.asked), path, {name.lower(): value for name, value in headers.items()}
            )
            self.asked.append(asked)
            try:
                answer = self.respond(asked)
                for piece in (answer,) if isinstance(answer, bytes) else answer:
                    if self._left.is_set():
                        return
                    connection.sendall(piece)
            except TornError:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            # What the client has not read yet would be lost with a RST.
            connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and connection.recv(1 << 16):
                pass
