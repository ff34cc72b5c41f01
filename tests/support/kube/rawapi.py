"""Raw requests to an API server, for what kubectl hides."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.kube.cluster import credentials

TIMEOUT_SECONDS = 10
PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


@dataclass(frozen=True)
class Answer:
    """An answer in full."""

    code: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> dict[str, Any]:
        """Its JSON."""
        return json.loads(self.text)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a watch."""
        return [json.loads(line) for line in self.text.splitlines()]


class RawApi:
    """Asks as the administrator of a kubeconfig of ours, or as nobody."""

    def __init__(self, kubeconfig: Path) -> None:
        server, self.token, ca = credentials(kubeconfig)
        self._url = urlsplit(server)
        self._context = ssl.create_default_context(cadata=ca)

    def open(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[HTTPSConnection, HTTPResponse]:
        """Ask, without reading the answer."""
        connection = HTTPSConnection(
            self._url.netloc, context=self._context, timeout=TIMEOUT_SECONDS
        )
        data = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {k: v for k, v in given.items() if v})
        return connection, connection.getresponse()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Ask and read the answer."""
        connection, response = self.open(method, path, body, **headers)
        try:
            return Answer(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()

    def patch(self, path: str, body: object, kind: str = "merge") -> Answer:
        """Patch an object."""
        return self.ask("PATCH", path, body, Content_Type=PATCHES[kind])
