"""A real API server and our own table both enforce the Pod Security Standard `restricted`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.support.charts.helmcharts import FULL
from tests.support.charts.ourpods import JOB_PODS, SPOILED, SWITCHED_ON, Json, chart_pods, spoiled
from tests.support.kube.cluster import Backend, Cluster, namespace_of

pytestmark = pytest.mark.cluster

NO_POD_AT_ALL = {"HostProcess", "Privileged Containers", "/proc Mount Type"}
"""Controls whose fields make our Pods invalid, so validation rejects them before the standard."""


@pytest.fixture(scope="module")
def restricted(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace that enforces the Pod Security Standard `restricted`."""
    if backend.name == "standalone":
        pytest.skip("standalone admits every Pod: KUBECONFIG or KUBEBUILDER_ASSETS")
    with namespace_of(backend, tmp_path_factory.mktemp("restricted")) as cluster:
        label = "pod-security.kubernetes.io/enforce=restricted"
        cluster.kubectl("label", "namespace", cluster.namespace, label)
        yield cluster


def manifest(pod: Json) -> str:
    """Return a Pod with this spec, but without references to other objects in the cluster."""
    named = ("priorityClassName", "runtimeClassName", "serviceAccountName", "imagePullSecrets")
    spec = {key: value for key, value in pod.items() if key not in named}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ours"}, "spec": spec}
    return yaml.safe_dump(item)


@pytest.mark.parametrize("pod", JOB_PODS)
def test_the_pods_of_jobs_are_admitted(restricted: Cluster, pod: Callable[[], Json]) -> None:
    """The API server accepts each Pod in a dry run."""
    restricted.kubectl("create", "--dry-run=server", "-f", "-", stdin=manifest(pod()))


@pytest.mark.parametrize("values", [SWITCHED_ON, FULL], ids=["by default", "full"])
def test_the_pods_of_the_chart_are_admitted(restricted: Cluster, values: Json) -> None:
    """The API server admits every Pod of the chart's Deployments, CronJobs and test Pods."""
    for pod in chart_pods(values).values():
        restricted.kubectl("create", "--dry-run=server", "-f", "-", stdin=manifest(pod))


@pytest.mark.parametrize(("control", "path", "value"), SPOILED)
def test_the_api_server_rejects_what_our_table_rejects(
    restricted: Cluster, control: str, path: str, value: Any
) -> None:
    """Tests without a cluster rely on this table."""
    item = manifest(spoiled(path, value))

    complaint = restricted.refused("create", "--dry-run=server", "-f", "-", stdin=item)

    reason = "is invalid" if control in NO_POD_AT_ALL else "violates PodSecurity"
    assert reason in complaint
