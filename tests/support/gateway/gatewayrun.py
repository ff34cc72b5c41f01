"""Starts a gateway in a thread, and calls gateways over real HTTP."""

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

from sd_api.netguard import Resolver
from sd_operator.clients.kube import Api
from sd_operator.gateway import keys
from sd_operator.gateway.app import create_app
from sd_operator.gateway.metrics import GatewayMetrics
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.server import server
from sd_operator.gateway.settings import GatewaySettings

Json = dict[str, Any]
START_SECONDS = 30.0
ARTIFACT = {
    "digest": "blake3:" + "0" * 64,
    "sizeBytes": 1,
    "files": 1,
    "precision": "fp16",
    "path": "x",
    "immutablePath": ".store/x/0000000000000000",
    "claimName": "models",
    "size": "1 B",
    "lastUpdateTime": "2023-01-25T11:52:22Z",
}
"""The status.artifact of a loaded model."""


def write_keys(path: Path, *namespaces: str) -> list[str]:
    """Write a key file with one key for each namespace; return the keys."""
    pairs = [keys.new(namespace) for namespace in namespaces]
    path.write_text("".join(f"{line}\n" for _, line in pairs))
    return [key for key, _ in pairs]


def call(address: str, key: str, endpoint: str, **fields: str) -> Json:
    """Call an endpoint, and wait for up to a minute if the gateway is not up yet."""
    body = json.dumps({"key": key, **fields}).encode()
    deadline = time.monotonic() + 60
    while True:
        try:
            url = f"{address}{PREFIX}/{endpoint}"
            with urllib.request.urlopen(url, body, timeout=30) as response:
                result: Json = json.load(response)
                return result
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            assert time.monotonic() < deadline
            time.sleep(0.1)


def no_names(host: str, _port: int) -> list[str]:
    """Fail like a DNS lookup without internet."""
    raise OSError(f"{host}: Name or service not known")


class Gateway:
    """A gateway that runs in a thread of this process while its context lasts.

    >>> with Gateway(GatewaySettings(keys_file, kubeconfig), key) as gateway:
    ...     status, response = gateway.call("verify_model", model_id="sketch")
    """

    def __init__(self, settings: GatewaySettings, key: str = "", port: int = 0) -> None:
        self.settings = settings
        self.key = key
        """The API key that `call` sends."""
        self.resolver: Resolver | None = None
        """The resolver of webhooks' hosts. By default, no lookup succeeds, as without internet."""
        self.metrics = GatewayMetrics()
        self.app = create_app(
            settings,
            Api(settings.kubeconfig, manager="sd-gateway"),
            self.metrics,
            lambda host, port: (self.resolver or no_names)(host, port),
        )
        self._server = server(self.app, replace(settings, bind_address="127.0.0.1", port=port))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            assert self._thread.is_alive(), "the gateway stopped while it was starting"
            assert time.monotonic() < deadline, f"the gateway did not start in {START_SECONDS} s"
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
        """The gateway's URL."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Json | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send a request; return status, headers and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def post(self, endpoint: str, raw: bytes, **headers: str) -> tuple[int, Json]:
        """Post a raw body to an endpoint; `_` stands for `-` in the names of headers."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        status, _, body = self.request("POST", f"{PREFIX}/{endpoint}", raw, names)
        return status, json.loads(body)

    def call(self, endpoint: str, **fields: object) -> tuple[int, Json]:
        """Call an endpoint with the key and these fields."""
        body = json.dumps({"key": self.key, **fields}).encode()
        return self.post(endpoint, body, Content_Type="application/json")
