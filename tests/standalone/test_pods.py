"""Tests of Pods: what they wait for, what they may run, and their logs."""

from __future__ import annotations

import secrets
import time

import pytest

from tests.support.kube.cluster import claim_manifest, secret_manifest
from tests.support.kube.stubjobs import (
    VOLUMES,
    condition,
    container,
    has_condition,
    job,
    pod_spec,
    request,
    wait_for_pod,
)

pytestmark = pytest.mark.cluster


def test_pod_waits_for_a_missing_pvc(stub_cluster):
    """The Pod's condition names the PVC. The Pod starts when the PVC is created."""
    stub_cluster.delete("pvc", "models")
    stub_cluster.wait_gone("pvc", "models")
    stub_cluster.apply(job("j"))
    pod = wait_for_pod(stub_cluster, "j", "Pending")
    name = pod["metadata"]["name"]

    pod = stub_cluster.wait_for("pod", name, has_condition("PodScheduled", "False"))

    scheduled = condition(pod, "PodScheduled")
    assert scheduled["reason"] == "Unschedulable"
    assert 'persistentvolumeclaim "models" not found' in scheduled["message"]
    events = dict(stub_cluster.events(name))
    assert 'persistentvolumeclaim "models" not found' in events["FailedScheduling"]
    stub_cluster.apply(claim_manifest())
    wait_for_pod(stub_cluster, "j", "Succeeded")


def test_deleted_pvc_stays_while_a_pod_uses_it(stub_cluster):
    """The PVC goes when the last Pod that uses it has gone."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    wait_for_pod(stub_cluster, "j")

    stub_cluster.delete("pvc", "models")

    time.sleep(0.5)
    assert "deletionTimestamp" in stub_cluster.get("pvc", "models")["metadata"]
    stub_cluster.delete("job", "j", "Foreground")
    stub_cluster.wait_gone("pvc", "models")


def test_pod_waits_for_a_missing_secret(stub_cluster):
    """The Event FailedMount names the Secret. The Pod starts when the Secret is created."""
    volumes = [*VOLUMES, {"name": "credentials", "secret": {"secretName": "late"}}]
    stub_cluster.apply(job("j", pod=pod_spec(volumes=volumes)))
    name = wait_for_pod(stub_cluster, "j", "Pending")["metadata"]["name"]

    stub_cluster.wait_for("pod", name, lambda pod: pod["spec"].get("nodeName"))
    deadline = time.monotonic() + 20
    while "FailedMount" not in (events := dict(stub_cluster.events(name))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert 'secret "late" not found' in events["FailedMount"]
    waiting = stub_cluster.get("pod", name)["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "ContainerCreating"
    stub_cluster.apply(secret_manifest("late", token="abc"))
    wait_for_pod(stub_cluster, "j", "Succeeded")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        pytest.param(
            {"command": ["sh", "-c", "touch /models/x"], "args": []},
            "runs only",
            id="shell command",
        ),
        pytest.param(
            {"command": ["/bin/sd-loader"]},
            "runs only",
            id="loader by path",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"args": ["load", "--request", "{}", "--store", "/models"]},
            "runs only",
            id="unknown command",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"args": ["convert", "--request", "{}", "--store", "/models", "--x"]},
            "runs only",
            id="unknown option",
        ),
        pytest.param(
            {"args": ["sweep", "--store", "/models", "--delete", "--x"]},
            "runs only",
            id="unknown option of sweep",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"args": ["sweep", "--store", "/", "--delete"]},
            "--store /",
            id="store of sweep without a PVC",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"args": ["convert", "--request", "{}", "--store", "/models"]},
            "is not valid",
            id="invalid request",
        ),
        pytest.param(
            {"args": ["convert", "--request", request("x"), "--store", "/"]},
            "--store /",
            id="store without a PVC",
        ),
        pytest.param(
            {"args": ["remove", "--request", request("x"), "--store", "/models"]},
            "is not valid",
            id="request of another command",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "env": [
                    {
                        "name": "X",
                        "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}},
                    }
                ]
            },
            "env X",
            id="unknown variable from a Secret",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "env": [
                    {
                        "name": "HTTPS_PROXY",
                        "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}},
                    }
                ]
            },
            "env HTTPS_PROXY: valueFrom may refer to these fields only",
            id="variable from a Secret",
        ),
    ],
)
def test_container_that_does_not_run_the_loader_fails(shared_stub_cluster, changes, complaint):
    """The Pod fails with a message, and nothing is run."""
    name = f"j{secrets.token_hex(4)}"
    pod = pod_spec(initContainers=[], containers=[container("convert", **changes)])
    shared_stub_cluster.apply(job(name, pod=pod))

    failed = wait_for_pod(shared_stub_cluster, name, "Failed")

    assert complaint in failed["status"]["message"]
    state = failed["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("StartError", 128)
    shared_stub_cluster.wait_for("job", name, has_condition("Failed"))
    assert list(shared_stub_cluster.store.iterdir()) == []


def test_volume_of_an_unsupported_type_fails_the_pod(stub_cluster):
    """Standalone never mounts folders of the machine."""
    volumes = [*VOLUMES, {"name": "root", "hostPath": {"path": "/"}}]
    stub_cluster.apply(job("j", pod=pod_spec(volumes=volumes)))

    failed = wait_for_pod(stub_cluster, "j", "Failed")

    assert "volume root" in failed["status"]["message"]


def test_followed_log_ends_with_its_container(stub_cluster):
    """`kubectl logs -f` waits until the container has ended, and prints all its lines.

    With --limit-bytes, it ends as soon as it has printed that many bytes.
    """
    stub_cluster.apply(job("j", "convert.sleep=1"))
    pod = wait_for_pod(stub_cluster, "j")

    begin = stub_cluster.kubectl("logs", "-f", "--limit-bytes=9", pod["metadata"]["name"])
    followed = stub_cluster.kubectl("logs", "-f", pod["metadata"]["name"])

    assert begin == "convert b"
    assert followed == "convert begins\nconvert ends\n"


def test_log_of_a_container_that_has_not_started_is_rejected(stub_cluster):
    """The message says that the container is waiting to start."""
    stub_cluster.apply(job("j", "fetch.sleep=60"))
    name = wait_for_pod(stub_cluster, "j", "Pending")["metadata"]["name"]
    stub_cluster.wait_for(
        "pod",
        name,
        lambda pod: (
            "running" in pod["status"].get("initContainerStatuses", [{}])[0].get("state", {})
        ),
    )

    assert 'container "convert" in pod' in stub_cluster.refused("logs", name)
    # A container counts as running before its process has printed anything.
    deadline = time.monotonic() + 30
    while stub_cluster.kubectl("logs", name, "-c=fetch") != "fetch begins\n":
        assert time.monotonic() < deadline
        time.sleep(0.1)
