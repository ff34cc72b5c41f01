"""Reads objects of an API server without kubectl, which would be a new process for every look."""

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
}


@dataclass(frozen=True)
class Objects:
    """The objects of a namespace; kinds are named as for kubectl."""

    kubeconfig: Path
    namespace: str

    def find(self, kind: str, name: str) -> Json | None:
        """Return an object, or None if there is none."""
        return self._ask(f"{self._root(kind)}/{name}")

    def list(self, kind: str, **selectors: str) -> list[Json]:
        """Return the objects of a kind; selectors are parameters such as `labelSelector`."""
        found = self._ask(f"{self._root(kind.removesuffix('s'))}?{urlencode(selectors)}")
        assert found is not None, f"the API server knows no {kind}"
        # Only the list says what its objects are.
        kinds = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        return [kinds | item for item in found["items"]]

    def _root(self, kind: str) -> str:
        return _ROOTS[kind].format(space=f"namespaces/{self.namespace}")

    def _ask(self, path: str) -> Json | None:
        client = _client(self.kubeconfig, self.kubeconfig.read_text())
        asked = client.param_serialize("GET", path, auth_settings=["BearerToken"])
        answer = client.call_api(*asked, _request_timeout=TIMEOUT_SECONDS)
        text = answer.read().decode()
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise OSError(f"GET {path}: {answer.status} {text}")
        found: Json = json.loads(text)
        return found


@cache
def _client(kubeconfig: Path, _content: str) -> ApiClient:
    """Return a client with its own connections; a file that changes needs another."""
    return new_client_from_config(str(kubeconfig), persist_config=False)
