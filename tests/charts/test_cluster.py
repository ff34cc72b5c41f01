"""The chart in a real cluster with RBAC: install, upgrade, roll back, test and remove.

`make test-cluster KUBECONFIG=…` runs these tests, since standalone has neither Deployments nor
RBAC. SD_TEST_OPERATOR_IMAGE names an image of the operator that the nodes can pull, for `helm
test`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from sd_api import names
from tests.support.charts.helmcharts import FULL, HELMS, OPERATOR, Json
from tests.support.charts.releases import Release
from tests.support.kube.cluster import Backend, Cluster, model_manifest

pytestmark = pytest.mark.cluster

ACCOUNT = "sd-operator"


def values(**more: object) -> Json:
    """Return values for a test release; the cluster already has the CRD."""
    return {"crd": {"install": False}, "fullnameOverride": ACCOUNT, **more}


def may(release: Release, verb: str, resource: str, namespace: str) -> bool:
    """Return whether the API server allows the operator a verb on KIND[/NAME][:SUB]."""
    account = f"system:serviceaccount:{release.cluster.namespace}:{ACCOUNT}"
    kind, _, sub = resource.partition(":")
    options = [f"--as={account}", f"--namespace={namespace}"]
    options += [f"--subresource={sub}"] if sub else []
    done = release.cluster.run("auth", "can-i", verb, kind, *options)
    return done.stdout.strip() == "yes"


@pytest.fixture(params=sorted(HELMS))
def release(request: pytest.FixtureRequest, backend: Backend, tmp_path: Path) -> Iterator[Release]:
    """A release in a new namespace; the test is skipped without a real API server."""
    with released(backend, request.param, tmp_path) as made:
        yield made


@contextlib.contextmanager
def released(backend: Backend, program: str, work: Path) -> Iterator[Release]:
    """Give a release in a new namespace, with this version of Helm; uninstall it afterwards."""
    if backend.name == "standalone":
        pytest.skip("standalone has no Deployments and no RBAC: KUBECONFIG or KUBEBUILDER_ASSETS")
    cluster = Cluster(backend, f"test-{secrets.token_hex(4)}", work)
    cluster.kubectl_apply(backend.namespace(name=cluster.namespace))
    made = Release(cluster, program, work)
    try:
        yield made
    finally:
        made.run("uninstall", "sd")
        cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")


def test_install_upgrade_rollback_uninstall(release: Release) -> None:
    """The PVC and its files survive the release, and a second release takes over the PVC."""
    cluster = release.cluster
    release.helm("install", "sd", str(OPERATOR), values=values())
    claim = cluster.get("pvc", "models")["metadata"]["uid"]

    release.helm("upgrade", "sd", str(OPERATOR), values=values(logLevel="DEBUG"))
    assert '"DEBUG"' in json.dumps(cluster.get("deployment", ACCOUNT))
    release.helm("rollback", "sd", "1")
    assert '"DEBUG"' not in json.dumps(cluster.get("deployment", ACCOUNT))

    release.helm("uninstall", "sd")
    assert not cluster.exists("deployment", ACCOUNT)
    assert cluster.get("pvc", "models")["metadata"]["uid"] == claim
    assert "sdm" in cluster.kubectl("api-resources", f"--api-group={names.GROUP}")

    release.helm("install", "sd", str(OPERATOR), values=values())
    assert cluster.get("pvc", "models")["metadata"]["uid"] == claim


@pytest.mark.parametrize(
    "given", [{}, {"models": {"clusterWide": True}}, FULL], ids=["defaults", "cluster-wide", "full"]
)
def test_the_api_server_accepts_every_object(backend: Backend, tmp_path: Path, given: Json) -> None:
    """A dry run reports no unknown field and no warning."""
    with released(backend, "helm", tmp_path) as release:
        cluster = release.cluster
        models = {**given.get("models", {})}
        if models.get("namespaces"):
            models["namespaces"] = [cluster.namespace]
        text = release.helm("template", "sd", str(OPERATOR), values={**given, "models": models})
        known = cluster.kubectl("api-resources", "--no-headers")
        kinds = {line.split()[-1] for line in known.splitlines()}
        objects = [item for item in yaml.safe_load_all(text) if item]
        foreign = {item["kind"] for item in objects} - kinds
        assert foreign <= {"PodMonitor", "ServiceMonitor", "PrometheusRule"}

        # The admission plugin ServiceAccount rejects a Pod whose account does not exist.
        accounts = [item for item in objects if item["kind"] == "ServiceAccount"]
        cluster.kubectl_apply(yaml.safe_dump_all(accounts), "--server-side")
        taken = cluster.kubectl(
            *("apply", "--server-side", "--force-conflicts", "--dry-run=server"),
            *("--validate=strict", "--warnings-as-errors", "-f", "-"),
            stdin=yaml.safe_dump_all(item for item in objects if item["kind"] in kinds),
        )

    assert len(taken.splitlines()) == sum(item["kind"] in kinds for item in objects)


def apply(cluster: Cluster, manifest: Json) -> subprocess.CompletedProcess[str]:
    """Apply an object and return the outcome, which may be an error."""
    return cluster.run("apply", "-f", "-", stdin=yaml.safe_dump(manifest))


def take_over(release: Release) -> list[str]:
    """Return the install options with which a release takes over a CRD that was applied by hand."""
    if release.program == "helm":
        # Helm 4 applies server-side, where another's fields are a conflict.
        return ["--take-ownership", "--force-conflicts"]
    kind = f"crd/{names.PLURAL}.{names.GROUP}"
    owner = (
        "meta.helm.sh/release-name=sd",
        f"meta.helm.sh/release-namespace={release.cluster.namespace}",
    )
    release.cluster.kubectl("annotate", kind, "--overwrite", *owner)
    release.cluster.kubectl("label", kind, "--overwrite", "app.kubernetes.io/managed-by=Helm")
    return []


def eventually(holds: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until the condition is true; the API server serves a changed CRD a moment later."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)


@pytest.mark.parametrize("program", sorted(HELMS))
def test_an_upgrade_installs_the_newer_crd(backend: Backend, tmp_path: Path, program: str) -> None:
    """New fields are served, models stay, and the CRD survives the release."""
    if backend.name != "kube-apiserver":
        pytest.skip("the kind belongs to all of a cluster; this needs KUBEBUILDER_ASSETS")
    older = tmp_path / "older"
    shutil.copytree(OPERATOR, older)
    file = older / "files" / "stablediffusionmodels.yaml"
    definition = yaml.safe_load(file.read_text())
    (version,) = definition["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["priority"]
    file.write_text(yaml.safe_dump(definition))
    manifest = model_manifest("sketch", url="org/model", priority=3)

    with released(backend, program, tmp_path) as release:
        cluster, whole = release.cluster, {"fullnameOverride": ACCOUNT}
        release.helm("install", "sd", str(older), *take_over(release), values=whole)
        eventually(lambda: "unknown field" in apply(cluster, manifest).stderr)
        cluster.kubectl_apply(model_manifest("sketch", url="org/model"))

        release.helm("upgrade", "sd", str(OPERATOR), values=whole)
        eventually(lambda: apply(cluster, manifest).returncode == 0)
        assert cluster.get("sdm", "sketch")["spec"]["priority"] == 3

        release.helm("uninstall", "sd")
        assert cluster.get("sdm", "sketch")["spec"]["url"] == "org/model"


MAY = [
    *(("sdm", verb) for verb in ("get", "list", "watch", "patch")),
    ("sdm:status", "patch"),
    *(("jobs", verb) for verb in ("get", "list", "watch", "create", "delete")),
    *(("pods", verb) for verb in ("list", "watch")),
    ("pods:log", "get"),
    *(("events", verb) for verb in ("create", "list")),
    *(("pvc", verb) for verb in ("get", "list", "watch")),
    ("leases.coordination.k8s.io", "create"),
    ("leases.coordination.k8s.io/sd-operator", "update"),
]
MAY_NOT = [
    *(("secrets", verb) for verb in ("get", "list", "watch")),
    *(("sdm", verb) for verb in ("create", "update", "delete")),
    *(("pods", verb) for verb in ("get", "create", "delete")),
    ("pods:exec", "create"),
    ("jobs", "update"),
    ("configmaps", "get"),
    ("leases.coordination.k8s.io/other", "update"),
    ("roles.rbac.authorization.k8s.io", "create"),
]


@pytest.mark.parametrize(
    ("given", "other_namespaces"),
    [
        ({"rbac": {"namespaceDeletion": False}}, {"models": False, "jobs": False}),
        ({}, {"models": True, "jobs": False}),
        ({"models": {"clusterWide": True}}, {"models": True, "jobs": True}),
    ],
    ids=["per namespace", "per namespace, and models of deleted ones", "cluster-wide"],
)
def test_the_api_server_grants_the_rights_of_the_chart(
    release: Release, given: Json, other_namespaces: dict[str, bool]
) -> None:
    """In other namespaces the operator has all rights if the release is cluster-wide.

    Otherwise it may only list and patch their models, and only if rbac.namespaceDeletion is set:
    it then releases the models of namespaces that are being deleted.
    """
    release.helm("install", "sd", str(OPERATOR), values=values(**given))

    for resource, verb in MAY:
        assert may(release, verb, resource, release.cluster.namespace), (verb, resource)
    for resource, verb in MAY_NOT:
        assert not may(release, verb, resource, release.cluster.namespace), (verb, resource)
    for verb in ("list", "patch"):
        assert may(release, verb, "sdm", "default") is other_namespaces["models"]
    for resource, verb in (
        ("jobs", "list"),
        ("jobs", "create"),
        # The Lease of requests for sweeps is created in each namespace with models.
        ("leases.coordination.k8s.io", "create"),
    ):
        assert may(release, verb, resource, "default") is other_namespaces["jobs"], (verb, resource)


def test_helm_test_succeeds(release: Release) -> None:
    """The cluster needs nodes that can pull the operator's image."""
    image = os.environ.get("SD_TEST_OPERATOR_IMAGE")
    if not image or release.cluster.backend.name != "cluster":
        pytest.skip("helm test needs a cluster with nodes, and SD_TEST_OPERATOR_IMAGE")
    repository, _, tag = image.rpartition(":")
    given = values(registry="", image={"repository": repository, "tag": tag}, replicas=2)
    release.helm("install", "sd", str(OPERATOR), "--wait", "--timeout=5m", values=given)

    assert "Succeeded" in release.helm("test", "sd")
