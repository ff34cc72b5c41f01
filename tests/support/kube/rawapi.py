"""Sends raw requests to an API server, for details that kubectl hides."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.kube.cluster import Backend, model_manifest
from tests.support.kube.kubeconfig import credentials

TIMEOUT_SECONDS = 10
LINK = "https://example.com/model.safetensors"
PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


@dataclass(frozen=True)
class Answer:
    """A complete response."""

    code: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> dict[str, Any]:
        """The response body, parsed as JSON."""
        return json.loads(self.text)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a watch response."""
        return [json.loads(line) for line in self.text.splitlines()]


class RawApi:
    """Sends requests as the user of a kubeconfig; `Authorization=""` sends no credentials."""

    def __init__(self, kubeconfig: Path) -> None:
        server, self.token, ca = credentials(kubeconfig)
        self._url = urlsplit(server)
        self._context = ssl.create_default_context(cadata=ca)

    def open(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[HTTPSConnection, HTTPResponse]:
        """Send a request and return the response unread."""
        connection = HTTPSConnection(
            self._url.netloc, context=self._context, timeout=TIMEOUT_SECONDS
        )
        data = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {k: v for k, v in given.items() if v})
        return connection, connection.getresponse()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request and read the response."""
        connection, response = self.open(method, path, body, **headers)
        try:
            return Answer(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()

    def patch(self, path: str, body: object, kind: str = "merge") -> Answer:
        """Patch an object."""
        return self.ask("PATCH", path, body, Content_Type=PATCHES[kind])


class Models:
    """The models of a namespace."""

    def __init__(self, api: RawApi, namespace: str) -> None:
        self.api = api
        self.path = f"/apis/sd-operator.dev/v1alpha1/namespaces/{namespace}/stablediffusionmodels"

    def create(self, name: str, **spec: object) -> dict:
        """Create a model."""
        answer = self.api.ask("POST", self.path, model_manifest(name, url=LINK, **spec))
        assert answer.code == 201, answer.text
        return answer.body

    def watch(self, **query: object) -> list[tuple[str, str]]:
        """Return the types and names of the events that arrive within one second."""
        given = {"watch": "1", "timeoutSeconds": 1, **query}
        text = "&".join(f"{key}={value}" for key, value in given.items())
        events = self.api.ask("GET", f"{self.path}?{text}").events
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


@contextmanager
def scratch(backend: Backend) -> Iterator[Models]:
    """Create a namespace for one test and yield its models."""
    api = RawApi(backend.kubeconfig)
    namespace = backend.namespace(generateName="test-")
    name = api.ask("POST", "/api/v1/namespaces", namespace).body["metadata"]["name"]
    try:
        yield Models(api, name)
    finally:
        api.ask("DELETE", f"/api/v1/namespaces/{name}")
