"""Tests that no right of the operator is missing and none is unused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_api import names
from sd_operator.reconciler.job_warnings import MIN_AGE_SECONDS
from sd_operator.resources.model import Model
from tests.support.kube.cluster import Backend
from tests.support.kube.kubeconfig import credentials
from tests.support.kube.rights import Right, needed
from tests.support.operator.operated import Operated, condition
from tests.support.proxies.rbacproxy import RbacProxy

MODELS = f"/apis/{names.API_VERSION}/namespaces/art/{names.PLURAL}"


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/version", None),
        ("GET", "/apis/batch/v1", None),
        ("GET", MODELS, f"list {names.PLURAL}.{names.GROUP} in art"),
        ("GET", f"{MODELS}?watch=true&limit=5", f"watch {names.PLURAL}.{names.GROUP} in art"),
        ("GET", "/apis/batch/v1/jobs?watch=1", "watch jobs.batch in "),
        ("PATCH", f"{MODELS}/x/status", f"patch {names.PLURAL}/status.{names.GROUP} in art"),
        ("GET", "/api/v1/namespaces/art/pods/x/log?tailLines=1", "get pods/log in art"),
        ("POST", "/api/v1/namespaces/art/events", "create events in art"),
        ("DELETE", "/api/v1/namespaces/art/pods", "deletecollection pods in art"),
        ("GET", "/api/v1/namespaces/art", "get namespaces in "),
    ],
)
def test_a_request_is_mapped_to_its_right(method: str, target: str, expected: str | None) -> None:
    """A right has a verb, a resource with subresource, a group and a namespace."""
    found = needed(method, target)
    assert (f"{found[0]} in {found[1]}" if found else None) == expected


@pytest.fixture
def proxy(backend: Backend, tmp_path: Path) -> Iterator[RbacProxy]:
    """A proxy that enforces RBAC for the test's operators; not every API server here does."""
    server, token, ca = credentials(backend.kubeconfig)
    with RbacProxy(server, token, ca, tmp_path / "proxy.kubeconfig") as made:
        yield made


@pytest.mark.cluster
def test_the_operator_has_the_rights_that_it_uses_and_no_other(
    light_operated: Operated, proxy: RbacProxy
) -> None:
    """The run covers loads, late Pods, a reload, an edit, a change of leader and a deletion."""
    operated = light_operated
    env = {
        "KUBECONFIG": str(proxy.kubeconfig),
        "SD_OPERATOR_LEADER_ELECTION": "true",
        "SD_OPERATOR_LEASE_NAMESPACE": operated.cluster.namespace,
    }
    # A long interval, since a resync would find the Pods whose watch events are held back.
    operated.start(**env, SD_OPERATOR_RESYNC_SECONDS="300")
    leader = operated.operator
    operated.eventually(lambda: "serving" in operated.cluster.operator_log())
    operated.start(**env)

    # A Job without Pods for a while: its Events are read.
    proxy.hold_pods = True
    # The load must outlast the wait, since Events are read only while the Job runs.
    url = operated.light_link("sketch", seconds=MIN_AGE_SECONDS + 5)
    operated.cluster.model("sketch", url=url, webhook=operated.receiver.url)
    operated.eventually(lambda: operated.jobs("load"))
    time.sleep(MIN_AGE_SECONDS + 1)
    operated.cluster.annotate("sdm", "sketch", {"example.com/look": "now"})
    operated.eventually(lambda: Right("", "events", "list") in proxy.used)
    proxy.hold_pods = False
    operated.ready()

    # A reload that is given up in mid-load; the log of its Pod is read.
    operated.cluster.model("sketch", url=operated.light_link("slow", seconds=60))
    operated.in_phase("sketch", "Converting")
    operated.eventually(lambda: Right("", "pods/log", "get") in proxy.used)
    operated.cluster.model("sketch", url=url)
    operated.ready()

    # Another operator leads. It replaces a foreign Job that has the name of the Job to create.
    assert leader is not None
    leader.terminate()
    assert leader.wait(10) == 0
    item = operated.cluster.model("other", url=operated.light_link("other"), suspend=True)
    name = names.job_name("other", item["metadata"]["uid"], Model.from_body(item).wanted, 0)
    container = {"name": "x", "image": "x", "command": ["x"]}
    pod = {"restartPolicy": "Never", "containers": [container]}
    foreign = {"metadata": {"name": name}, "spec": {"template": {"spec": pod}, "suspend": True}}
    operated.cluster.apply({"apiVersion": "batch/v1", "kind": "Job", **foreign})
    operated.cluster.patch("sdm", "other", {"spec": {"suspend": False}})
    operated.ready("other")

    # At each resync, the operator reads a loaded model and its PVC.
    looks = {Right(names.GROUP, names.PLURAL, "get"), Right("", "persistentvolumeclaims", "get")}
    operated.eventually(lambda: looks <= proxy.used)
    for model in ("sketch", "other"):
        operated.delete(model)
        operated.gone(model)

    assert sorted(map(str, proxy.missing)) == []
    assert sorted(map(str, proxy.unused)) == []
    assert sorted(map(str, proxy.everywhere)) == [], "it stays in the namespaces that it serves"


@pytest.mark.cluster
def test_a_missing_right_is_reported(operated: Operated, proxy: RbacProxy) -> None:
    """Without the right to create Jobs, the status shows the API server's message."""
    proxy.allowed -= {Right("batch", "jobs", "create")}
    operated.start(KUBECONFIG=str(proxy.kubeconfig))
    operated.cluster.model("sketch", url=operated.link())
    operated.wait("sketch", lambda one: "cannot create" in condition(one, "Ready")["message"])
    assert sorted(map(str, proxy.missing)) == ["create jobs.batch"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_leader_that_cannot_renew_its_lease_ends(operated: Operated, proxy: RbacProxy) -> None:
    """The leader ends 6 s after its last renewal, before its Lease expires."""
    operated.start(
        KUBECONFIG=str(proxy.kubeconfig),
        SD_OPERATOR_LEADER_ELECTION="true",
        SD_OPERATOR_LEASE_NAMESPACE=operated.cluster.namespace,
    )
    operated.eventually(lambda: "serving" in operated.cluster.operator_log())
    proxy.allowed -= {Right("coordination.k8s.io", "leases", "update")}
    assert operated.operator is not None
    assert operated.operator.wait(9) == 1
    log = operated.cluster.operator_log()
    assert "could not be renewed for 6 s: update Lease" in log
    assert "leading" in log
