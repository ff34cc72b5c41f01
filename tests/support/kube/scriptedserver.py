"""An API server on loopback that answers as a script says, and the real client's questions."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sd_operator.clients import kube
from sd_operator.clients.kube import Api
from tests.support.kube.kubeconfig import write_kubeconfig


@dataclass
class Request:
    """What the server was asked."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Server:
    """Gives the scripted answers in order, the last one for ever; refuses an expired token."""

    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    kubeconfig: Path = Path()
    expired: str = ""
    delay: float = 0.0
    """Seconds that each answer takes, one after the other."""
    turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, code: int, body: Any = None, **headers: str) -> None:
        """Script one more answer."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((code, {} if body is None else body, given))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server on loopback."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.requests.append(
                Request(
                    self.command,
                    parts.path,
                    parse_qs(parts.query),
                    headers,
                    json.loads(body) if body else None,
                )
            )
            if state.delay:
                with state.turn:
                    time.sleep(state.delay)
            code, answer, more = (
                (401, status(401, "Unauthorized"), {})
                if state.expired and headers.get("authorization") == f"Bearer {state.expired}"
                else state.answers.pop(0)
                if len(state.answers) > 1
                else state.answers[0]
            )
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(code)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    for method in ("GET", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    state.kubeconfig = folder / "kubeconfig"
    write_kubeconfig(state.kubeconfig, f"http://127.0.0.1:{http.server_port}", "first")
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def ask(
    server: Server, question: Callable[[Api], Awaitable[Any]], count: kube.Count = lambda *_: None
) -> Any:
    """Ask the server through the real client."""

    async def run() -> Any:
        async with Api(server.kubeconfig, count) as api:
            return await question(api)

    return asyncio.run(run())


def status(code: int, reason: str, **details: Any) -> dict[str, Any]:
    """A Status object, as Kubernetes refuses."""
    return {
        "kind": "Status",
        "code": code,
        "reason": reason,
        "message": f"it is {reason}",
    } | details
