"""Gateways called over real HTTP: those of other processes, and one in a thread of this."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sd_operator.clients.kube import Api
from sd_operator.gateway import keys
from sd_operator.gateway.app import create_app
from sd_operator.gateway.metrics import Metrics
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.server import server
from sd_operator.gateway.settings import Settings

Json = dict[str, Any]
START_SECONDS = 30.0
ARTIFACT = {
    "digest": "0" * 64,
    "sizeBytes": 1,
    "files": 1,
    "precision": "fp16",
    "path": "x",
    "immutablePath": ".store/x/0000000000000000",
    "claimName": "models",
    "size": "1 B",
    "lastUpdateTime": "2023-01-25T11:52:22Z",
}
"""What the operator tells of a published folder."""


def write_keys(path: Path, *namespaces: str) -> list[str]:
    """A file of one key for each namespace; returns the keys."""
    made = [keys.new(namespace) for namespace in namespaces]
    path.write_text("".join(f"{line}\n" for _, line in made))
    return [key for key, _ in made]


def call(address: str, key: str, endpoint: str, **fields: str) -> Json:
    """Call an endpoint of a gateway that may just be starting."""
    body = json.dumps({"key": key, **fields}).encode()
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{address}{PREFIX}/{endpoint}", body, timeout=30) as got:
                answer: Json = json.load(got)
                return answer
        except urllib.error.URLError as problem:
            if isinstance(problem, urllib.error.HTTPError):
                raise
            assert time.monotonic() < deadline
            time.sleep(0.1)


class Gateway:
    """A running gateway; key is what its calls carry unless told otherwise."""

    def __init__(self, settings: Settings, key: str = "") -> None:
        self.key = key
        self.metrics = Metrics()
        self.app = create_app(
            settings, Api(settings.kubeconfig, manager="sd-gateway"), self.metrics
        )
        self._server = server(self.app, replace(settings, bind_address="127.0.0.1", port=0))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            assert self._thread.is_alive(), "the gateway ended"
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Json | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One call: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def post(self, endpoint: str, raw: bytes, **headers: str) -> tuple[int, Json]:
        """Post a body as it is to one of the vendor's endpoints."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        status, _, body = self.request("POST", f"{PREFIX}/{endpoint}", raw, given)
        return status, json.loads(body)

    def call(self, endpoint: str, **fields: object) -> tuple[int, Json]:
        """Call an endpoint with the key."""
        body = json.dumps({"key": self.key, **fields}).encode()
        return self.post(endpoint, body, Content_Type="application/json")
