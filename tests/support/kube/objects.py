"""Reads and writes objects of an API server without kubectl, which is a new process each time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes.client import ApiClient
from kubernetes.config import new_client_from_config

from sd_api import names

Json = dict[str, Any]

TIMEOUT_SECONDS = 30
APPLY = urlencode({"fieldManager": "test", "force": "true", "fieldValidation": "Strict"})
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"
_ROOTS = {
    "clusterrolebinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "crd": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "deployment": "/apis/apps/v1/{space}/deployments",
    "event": "/api/v1/{space}/events",
    "job": "/apis/batch/v1/{space}/jobs",
    "lease": "/apis/coordination.k8s.io/v1/{space}/leases",
    "namespace": "/api/v1/namespaces",
    "node": "/api/v1/nodes",
    "pod": "/api/v1/{space}/pods",
    "pvc": "/api/v1/{space}/persistentvolumeclaims",
    "sdm": f"/apis/{names.API_VERSION}/{{space}}/{names.PLURAL}",
    "secret": "/api/v1/{space}/secrets",
    "serviceaccount": "/api/v1/{space}/serviceaccounts",
}
_SHORT = {
    "CustomResourceDefinition": "crd",
    "PersistentVolumeClaim": "pvc",
    names.KIND: "sdm",
}
"""The keys in _ROOTS of kinds whose key is not simply the kind in lower case."""


@dataclass(frozen=True)
class Objects:
    """The objects of a namespace; kinds are named as for kubectl."""

    kubeconfig: Path
    namespace: str

    def find(self, kind: str, name: str) -> Json | None:
        """Return an object, or None if there is none."""
        return self._ask("GET", f"{self._root(kind)}/{name}")

    def list(self, kind: str, **selectors: str) -> list[Json]:
        """Return the objects of a kind; selectors are parameters such as `labelSelector`."""
        path = f"{self._root(kind.removesuffix('s'))}?{urlencode(selectors)}"
        found = self._ask("GET", path)
        assert found is not None, f"the API server knows no {kind}"
        # The objects of a list have no apiVersion and kind: both follow from those of the list.
        kinds = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        return [kinds | item for item in found["items"]]

    def apply(self, item: Json) -> Json:
        """Create an object, or update the one with its name as `kubectl apply` does."""
        kind = _SHORT.get(item["kind"], item["kind"].lower())
        path = f"{self._root(kind)}/{item['metadata']['name']}?{APPLY}"
        return self._write("PATCH", path, item, _APPLY_PATCH)

    def patch(self, kind: str, name: str, change: Json, subresource: str = "") -> Json:
        """Merge a change into an object or into a subresource of it."""
        path = f"{self._root(kind)}/{name}/{subresource}".rstrip("/")
        return self._write("PATCH", path, change, _MERGE_PATCH)

    def delete(self, kind: str, name: str, propagation: str = "Background") -> None:
        """Request the deletion of an object without waiting for it; it may be gone already."""
        self._ask("DELETE", f"{self._root(kind)}/{name}", {"propagationPolicy": propagation})

    def _root(self, kind: str) -> str:
        return _ROOTS[kind].format(space=f"namespaces/{self.namespace}")

    def _write(self, method: str, path: str, body: Json, content: str = "application/json") -> Json:
        answer = self._ask(method, path, body, content)
        if answer is None:
            raise OSError(f"{method} {path}: there is no such object")
        return answer

    def _ask(
        self, method: str, path: str, body: Json | None = None, content: str = "application/json"
    ) -> Json | None:
        client = _client(self.kubeconfig, self.kubeconfig.read_text())
        method, url, headers, *_ = client.param_serialize(
            method, path, header_params={"Content-Type": content}, auth_settings=["BearerToken"]
        )
        # The client serializes only content types with `json` in their names.
        sent = json.dumps(body) if content == _APPLY_PATCH else body
        answer = client.call_api(method, url, headers, sent, _request_timeout=TIMEOUT_SECONDS)
        text = answer.read().decode()
        if answer.status == 404:
            return None
        if answer.status not in (200, 201, 202):
            raise OSError(f"{method} {path}: {answer.status} {text}")
        found: Json = json.loads(text)
        return found


@cache
def _client(kubeconfig: Path, _content: str) -> ApiClient:
    """Return the cached client of a kubeconfig; a changed file gets a new client."""
    return new_client_from_config(str(kubeconfig), persist_config=False)
