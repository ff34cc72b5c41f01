"""The Pod Security Standard `restricted`, enforced by a real API server and by our own table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.charts.ourpods import JOB_PODS, SPOILED, Json, chart_pods, spoiled
from tests.support.kube.cluster import Backend, Cluster, namespace_of

pytestmark = pytest.mark.cluster

NO_POD_AT_ALL = {"HostProcess", "Privileged Containers", "/proc Mount Type"}
"""Controls of fields that no Pod can have together with ours: it is refused as invalid before."""


@pytest.fixture(scope="module")
def restricted(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace that admits only what the standard allows."""
    if backend.name == "standalone":
        pytest.skip("standalone admits every Pod: KUBECONFIG or KUBEBUILDER_ASSETS")
    with namespace_of(backend, tmp_path_factory.mktemp("restricted")) as cluster:
        label = "pod-security.kubernetes.io/enforce=restricted"
        cluster.kubectl("label", "namespace", cluster.namespace, label)
        yield cluster


def manifest(pod: Json) -> str:
    """Return a Pod with this spec, without its references to objects in the cluster."""
    named = ("priorityClassName", "runtimeClassName", "serviceAccountName", "imagePullSecrets")
    spec = {key: value for key, value in pod.items() if key not in named}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ours"}, "spec": spec}
    return yaml.safe_dump(item)


@pytest.mark.parametrize("pod", [*JOB_PODS, *chart_pods()])
def test_our_pods_are_admitted(restricted: Cluster, pod: Json) -> None:
    """The Pods of Jobs and of the chart are tried."""
    restricted.kubectl("create", "--dry-run=server", "-f", "-", stdin=manifest(pod))


@pytest.mark.parametrize(("control", "path", "value"), SPOILED)
def test_what_our_table_rejects_is_rejected(
    restricted: Cluster, control: str, path: str, value: Any
) -> None:
    """The table that other tests use agrees with the API server."""
    item = manifest(spoiled(path, value))

    complaint = restricted.refused("create", "--dry-run=server", "-f", "-", stdin=item)

    reason = "is invalid" if control in NO_POD_AT_ALL else "violates PodSecurity"
    assert reason in complaint
