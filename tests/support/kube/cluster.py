"""A namespace of a test cluster, with kubectl, operators and functions that wait."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api import names
from tests.support.kube.objects import Objects
from tests.support.processes import start, stop
from tools.kubectl import kubectl_path

Json = dict[str, Any]

CLAIM = "models"
TEST_LABEL = f"{names.GROUP}/test"
"""The label of every object that a run creates outside its namespaces, and of the namespaces."""


class ClusterError(Exception):
    """The cluster did not reach an expected state; the message has its last state."""


@dataclass(frozen=True)
class Backend:
    """A running API server, with something that runs its Pods."""

    name: str
    kubeconfig: Path
    operator_kubeconfig: Path
    store: str | None
    """The folder of a PVC's files, with {namespace} in it; None if this machine has no access.

    Wildcards in the path are expanded.
    """
    loader_image: str = "sd-loader:test"
    source_host: str = "127.0.0.1"
    """The address at which Pods reach the sources of this machine; the sources listen on it."""
    controllers: bool = True
    """Whether standalone's controllers run, which wait only 1 s before the first retry."""
    local_pods: bool = True
    """Whether Pods are processes on this machine and can run stubloader.py."""
    patience: float = 60.0
    """The seconds that a Pod may need until it has done its work."""
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    """The value of TEST_LABEL, so that a run deletes only its own objects."""

    def namespace(self, **metadata: str) -> Json:
        """Return the manifest of a namespace of this run."""
        labels = {TEST_LABEL: self.run}
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"labels": labels, **metadata}}


@dataclass
class Cluster:
    """The namespace of one test."""

    backend: Backend
    namespace: str
    work: Path

    stub: bool = False
    """Whether its Pods run stubloader.py instead of the loader."""

    _operators: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of an administrator."""
        return self.backend.kubeconfig

    @property
    def store(self) -> Path:
        """The folder of the namespace's volume; skips the test if this machine cannot see it."""
        if self.backend.store is None:
            pytest.skip("SD_TEST_STORE is not set, so the PVC's files cannot be read")
        pattern = self.backend.store.format(namespace=self.namespace)
        return next(Path("/").glob(pattern.removeprefix("/")), Path(pattern))

    def run(
        self, *arguments: str, stdin: str | None = None, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace; the exit code is not checked."""
        command = [str(kubectl_path()), f"--kubeconfig={self.kubeconfig}", f"-n={self.namespace}"]
        return subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout
        )

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 30) -> str:
        """Run kubectl, which must succeed, and return its output."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def refused(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl, which must fail, and return its error output."""
        done = self.run(*arguments, stdin=stdin)
        if not done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} succeeded: {done.stdout.strip()}")
        return done.stderr

    def kubectl_apply(self, manifest: str | Json, *options: str) -> str:
        """Apply YAML text or an object with kubectl, and return its output."""
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest)
        return self.kubectl("apply", "-f", "-", *options, stdin=text)

    @property
    def objects(self) -> Objects:
        """The objects of the namespace, as the administrator sees them."""
        return Objects(self.kubeconfig, self.namespace)

    def apply(self, item: Json) -> Json:
        """Create an object or update the one with its name, and return it."""
        return self.objects.apply(item)

    def patch(self, kind: str, name: str, change: Json, subresource: str = "") -> Json:
        """Merge a change into an object or into a subresource of it, and return the object."""
        return self.objects.patch(kind, name, change, subresource)

    def annotate(self, kind: str, name: str, annotations: dict[str, str]) -> None:
        """Set annotations of an object."""
        self.patch(kind, name, {"metadata": {"annotations": annotations}})

    def delete(self, kind: str, name: str, propagation: str = "Background") -> None:
        """Request the deletion of an object without waiting for it; it may be gone already."""
        self.objects.delete(kind, name, propagation)

    def get(self, kind: str, name: str) -> Json:
        """Return an object."""
        item = self.objects.find(kind, name)
        if item is None:
            raise ClusterError(f"there is no {kind} {name} in namespace {self.namespace}")
        return item

    def list(self, kind: str, **selectors: str) -> list[Json]:
        """Return the objects of a kind; selectors are parameters such as `labelSelector`."""
        return self.objects.list(kind, **selectors)

    def exists(self, kind: str, name: str) -> bool:
        """Return whether the object exists."""
        return self.objects.find(kind, name) is not None

    def model(self, name: str, **spec: object) -> Json:
        """Apply a StableDiffusionModel and return it."""
        return self.apply(model_manifest(name, **spec))

    def release(self, name: str) -> None:
        """Remove the finalizers of a model, as if the operator had cleaned up."""
        self.patch("sdm", name, {"metadata": {"finalizers": None}})

    def wait_for(
        self,
        kind: str,
        name: str,
        reached: Callable[[Json], object],
    ) -> Json:
        """Wait until an object reaches a state, and return it."""
        timeout = self.backend.patience
        deadline = time.monotonic() + timeout
        item: Json = {}
        while time.monotonic() < deadline:
            item = self.objects.find(kind, name) or {}
            if item and reached(item):
                return item
            time.sleep(0.1)
        raise ClusterError(
            f"{kind}/{name} is not as expected after {timeout} s: {json.dumps(item)}"
        )

    def wait_gone(self, kind: str, name: str) -> None:
        """Wait until an object is deleted; a new object with its name does not count."""
        deadline = time.monotonic() + self.backend.patience
        item = first = self.objects.find(kind, name)
        while item and first and item["metadata"]["uid"] == first["metadata"]["uid"]:
            if time.monotonic() > deadline:
                waited = self.backend.patience
                raise ClusterError(f"{kind}/{name} still exists after {waited} s: {item}")
            time.sleep(0.1)
            item = self.objects.find(kind, name)

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return the reasons and messages of the Events about an object, oldest first."""
        found = self.list("events", fieldSelector=f"involvedObject.name={name}")
        found.sort(key=lambda item: (item["lastTimestamp"] or "", item["metadata"]["name"]))
        return [(item["reason"], item["message"]) for item in found]

    def start_operator(self, **env: str) -> subprocess.Popen[bytes]:
        """Start `sd-operator run` for this namespace; its log is work/operator-N.log."""
        settings = {
            "KUBECONFIG": str(self.backend.operator_kubeconfig),
            "SD_OPERATOR_NAMESPACES": self.namespace,
            "SD_OPERATOR_CLAIM_NAME": CLAIM,
            "SD_OPERATOR_LOADER_IMAGE": self.backend.loader_image,
            "SD_OPERATOR_LOADER_SLIM_IMAGE": self.backend.loader_image,
            "SD_OPERATOR_GPU_COUNT": "0",
            "SD_OPERATOR_BIND_ADDRESS": "127.0.0.1",
            "SD_OPERATOR_METRICS_PORT": "0",
            "SD_OPERATOR_PROBES_PORT": "0",
            "SD_OPERATOR_POLL_SECONDS": "0.5",
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.work),
        }
        log = self.work / f"operator-{len(self._operators)}.log"
        process = start([sys.executable, "-m", "sd_operator", "run"], log, settings | env)
        self._operators.append(process)
        return process

    def operator_log(self) -> str:
        """Return the log of all operators of this test."""
        return "".join(path.read_text() for path in sorted(self.work.glob("operator-*.log")))

    def stop_operators(self) -> None:
        """Stop all operators that still run."""
        for process in self._operators:
            stop(process)


def model_manifest(name: str, **spec: object) -> Json:
    """Return the manifest of a StableDiffusionModel; keywords are fields of its spec."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": spec,
    }


def claim_manifest(name: str = CLAIM, *, for_models: bool = True) -> Json:
    """Return the manifest of a PVC; `for_models` adds the label that lets models use it."""
    labels = {names.LABEL_MODELS: "true"} if for_models else {}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def secret_manifest(name: str, **data: str) -> Json:
    """Return the manifest of a Secret."""
    metadata = {"name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


@contextlib.contextmanager
def namespace_of(
    backend: Backend, work: Path, *, claim: bool = True, stub: bool = False
) -> Iterator[Cluster]:
    """Create a namespace with a PVC; at the end, stop its operators and delete the namespace.

    With `stub` its Pods run stubloader.py instead of the loader.
    """
    if stub and not backend.local_pods:
        pytest.skip("the nodes of KUBECONFIG's cluster cannot run a stand-in for the loader")
    cluster = Cluster(backend, f"test-{secrets.token_hex(4)}", work, stub)
    cluster.apply(backend.namespace(name=cluster.namespace))
    if claim:
        cluster.apply(claim_manifest())
    if backend.name != "standalone":
        # Without this ServiceAccount Pods are rejected; the cluster's controller may be late.
        cluster.run("create", "serviceaccount", "default")
    try:
        if claim and backend.local_pods and backend.store is not None:
            cluster.store.mkdir(parents=True, exist_ok=True)
        if stub:
            (cluster.store.parent / "stub").touch()  # podloader.py looks for it
        yield cluster
    finally:
        cluster.stop_operators()
        _release(cluster)
        if cluster.exists("namespace", cluster.namespace):
            cluster.delete("namespace", cluster.namespace)


def _release(cluster: Cluster) -> None:
    """Remove the finalizers of models, because no operator is left to clean up."""
    for model in cluster.list("sdm"):
        if model["metadata"].get("finalizers"):
            cluster.release(model["metadata"]["name"])
