"""Raw requests about the models of a namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.kube.cluster import Backend, model_manifest
from tests.support.kube.rawapi import RawApi

LINK = "https://example.com/model.safetensors"


class Models:
    """The models of a namespace."""

    def __init__(self, api: RawApi, namespace: str) -> None:
        self.api = api
        self.path = f"/apis/sd-operator.dev/v1alpha1/namespaces/{namespace}/stablediffusionmodels"

    def create(self, name: str, **spec: object) -> dict:
        """Make one."""
        answer = self.api.ask("POST", self.path, model_manifest(name, url=LINK, **spec))
        assert answer.code == 201, answer.text
        return answer.body

    def watch(self, **query: object) -> list[tuple[str, str]]:
        """Types and names of the events of one second."""
        given = {"watch": "1", "timeoutSeconds": 1, **query}
        text = "&".join(f"{key}={value}" for key, value in given.items())
        events = self.api.ask("GET", f"{self.path}?{text}").events
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


@contextmanager
def scratch(backend: Backend) -> Iterator[Models]:
    """The models of a namespace that is there for one test."""
    try:
        api = RawApi(backend.kubeconfig)
    except KeyError:
        pytest.skip("the kubeconfig has no token for raw requests")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "test-"}}
    name = api.ask("POST", "/api/v1/namespaces", namespace).body["metadata"]["name"]
    yield Models(api, name)
    api.ask("DELETE", f"/api/v1/namespaces/{name}")
