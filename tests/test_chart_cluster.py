"""The chart in a real cluster: installed, upgraded, rolled back, tested and removed, with RBAC.

`make test-cluster KUBECONFIG=…` runs them. Standalone has neither Deployments nor RBAC.
SD_TEST_OPERATOR_IMAGE names an image of the operator that the nodes can pull, for `helm test`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Backend, Cluster
from helmcharts import HELMS, OPERATOR, Json
from releases import Release

from sd_api import names

pytestmark = pytest.mark.cluster

ACCOUNT = "sd-operator"


def values(**more: object) -> Json:
    """Values for tests; the kind is defined by the tests' cluster."""
    return {"crd": {"install": False}, "fullnameOverride": ACCOUNT, **more}


def may(release: Release, verb: str, resource: str, namespace: str) -> bool:
    """Whether the operator may, as the API server itself says. resource: KIND[/NAME][:SUB]."""
    account = f"system:serviceaccount:{release.cluster.namespace}:{ACCOUNT}"
    kind, _, sub = resource.partition(":")
    options = [f"--as={account}", f"--namespace={namespace}"]
    options += [f"--subresource={sub}"] if sub else []
    done = release.cluster.run("auth", "can-i", verb, kind, *options)
    return done.stdout.strip() == "yes"


@pytest.fixture(params=sorted(HELMS))
def release(request: pytest.FixtureRequest, backend: Backend, tmp_path: Path) -> Iterator[Release]:
    """A namespace for a release; skips the test where there is no real API server."""
    if backend.name == "standalone":
        pytest.skip("standalone has no Deployments and no RBAC: KUBECONFIG or KUBEBUILDER_ASSETS")
    cluster = Cluster(backend, f"test-{secrets.token_hex(4)}", tmp_path)
    cluster.kubectl("create", "namespace", cluster.namespace)
    made = Release(cluster, request.param, tmp_path)
    try:
        yield made
    finally:
        made.run("uninstall", "sd")
        cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")


def test_install_upgrade_rollback_uninstall(release: Release) -> None:
    """The claim and what is on it outlive the release; a second one takes the claim over."""
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


@pytest.mark.parametrize("cluster_wide", [False, True], ids=["per namespace", "cluster-wide"])
def test_the_api_server_grants_what_the_chart_says(release: Release, cluster_wide: bool) -> None:
    """In the release's namespace; in others only where rights are cluster-wide."""
    given = values(models={"clusterWide": cluster_wide})
    release.helm("install", "sd", str(OPERATOR), values=given)

    for resource, verb in MAY:
        assert may(release, verb, resource, release.cluster.namespace), (verb, resource)
    for resource, verb in MAY_NOT:
        assert not may(release, verb, resource, release.cluster.namespace), (verb, resource)
    assert may(release, "list", "sdm", "default") is cluster_wide
    assert not may(release, "create", "leases.coordination.k8s.io", "default")


def test_helm_test_is_content(release: Release) -> None:
    """Needs nodes, and the operator's image on them."""
    image = os.environ.get("SD_TEST_OPERATOR_IMAGE")
    if not image or release.cluster.backend.name != "cluster":
        pytest.skip("helm test needs a cluster with nodes, and SD_TEST_OPERATOR_IMAGE")
    repository, _, tag = image.rpartition(":")
    given = values(registry="", image={"repository": repository, "tag": tag}, replicas=2)
    release.helm("install", "sd", str(OPERATOR), "--wait", "--timeout=5m", values=given)

    assert "Succeeded" in release.helm("test", "sd")
