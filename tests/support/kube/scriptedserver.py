"""An API server on loopback that gives scripted answers to the operator's real client.

For example:

    with serving(tmp_path) as server:
        server.answer(409, status(409, "Conflict"))
        server.answer(200, {"metadata": {"name": "a"}})
        ask(server, lambda api: api.get(MODELS, "art", "a"))
        assert server.requests[0].path.endswith("/a")
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from devkit.loopback import Answer, Loopback
from devkit.loopback import Request as HttpRequest
from sd_operator.clients import kube
from sd_operator.clients.kube import Api
from tests.support.kube.kubeconfig import write_kubeconfig


@dataclass
class Request:
    """A request, with its query and its body parsed."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Server:
    """Gives the scripted answers in order and repeats the last one."""

    kubeconfig: Path
    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    expired: str = ""
    """A token that gets status 401."""
    delay: float = 0.0
    """How many seconds each response takes; responses are sent one after the other."""
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, code: int, body: Any = None, **headers: str) -> None:
        """Script one more answer."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((code, {} if body is None else body, given))

    def respond(self, request: HttpRequest) -> Answer:
        """Record a request, and give the answer that is due."""
        headers = dict(request.headers)
        body = json.loads(request.body) if request.body else None
        query = parse_qs(request.query)
        self.requests.append(Request(request.method, request.path, query, headers, body))
        if self.delay:
            with self._turn:
                time.sleep(self.delay)
        if self.expired and headers.get("authorization") == f"Bearer {self.expired}":
            return Answer(401, json.dumps(status(401, "Unauthorized")).encode())
        code, value, more = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Answer(code, value if isinstance(value, bytes) else json.dumps(value).encode(), more)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve on loopback; writes a kubeconfig with the token `first` into the folder."""
    server = Server(folder / "kubeconfig")
    with Loopback(server.respond) as http:
        write_kubeconfig(server.kubeconfig, http.url, "first")
        yield server


def ask(
    server: Server, question: Callable[[Api], Awaitable[Any]], count: kube.Count = lambda *_: None
) -> Any:
    """Ask the server through the real client."""

    async def run() -> Any:
        async with Api(server.kubeconfig, count) as api:
            return await question(api)

    return asyncio.run(run())


def status(code: int, reason: str, **details: Any) -> dict[str, Any]:
    """Return a Status object, as Kubernetes sends it with an error."""
    return {
        "kind": "Status",
        "code": code,
        "reason": reason,
        "message": f"it is {reason}",
    } | details
