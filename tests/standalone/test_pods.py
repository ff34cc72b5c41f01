"""Pods: what they wait for, what they may run, and their logs."""

from __future__ import annotations

import secrets
import time

import pytest

from tests.support.kube.cluster import claim_manifest
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


def test_a_pod_waits_for_its_claim(stub_cluster):
    """A missing claim is said in the Pod's condition and in an Event; made later, the Pod runs."""
    stub_cluster.kubectl("delete", "pvc", "models")
    stub_cluster.apply(job("j"))
    pod = wait_for_pod(stub_cluster, "j", "Pending")
    name = pod["metadata"]["name"]

    pod = stub_cluster.wait_for("pod", name, has_condition("PodScheduled", "False"))

    scheduled = condition(pod, "PodScheduled")
    assert scheduled["reason"] == "Unschedulable"
    assert 'persistentvolumeclaim "models" not found' in scheduled["message"]
    assert "FailedScheduling" in [reason for reason, _ in stub_cluster.events(name)]
    stub_cluster.apply(claim_manifest())
    wait_for_pod(stub_cluster, "j", "Succeeded")


def test_a_claim_in_use_is_kept(stub_cluster):
    """A deleted claim stays until no Pod uses it any more."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    wait_for_pod(stub_cluster, "j")

    stub_cluster.kubectl("delete", "pvc", "models", "--wait=false")

    time.sleep(0.5)
    assert "deletionTimestamp" in stub_cluster.get("pvc", "models")["metadata"]
    stub_cluster.kubectl("delete", "job", "j", "--cascade=foreground")
    stub_cluster.wait_gone("pvc", "models")


def test_a_pod_waits_for_a_secret_that_is_not_optional(stub_cluster):
    """The Event names the Secret; made later, the Pod runs."""
    volumes = [*VOLUMES, {"name": "credentials", "secret": {"secretName": "late"}}]
    stub_cluster.apply(job("j", pod=pod_spec(volumes=volumes)))
    name = wait_for_pod(stub_cluster, "j", "Pending")["metadata"]["name"]

    stub_cluster.wait_for("pod", name, lambda pod: pod["spec"].get("nodeName"))
    deadline = time.monotonic() + 20
    while "FailedMount" not in [reason for reason, _ in stub_cluster.events(name)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    waiting = stub_cluster.get("pod", name)["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "ContainerCreating"
    stub_cluster.kubectl("create", "secret", "generic", "late", "--from-literal=token=abc")
    wait_for_pod(stub_cluster, "j", "Succeeded")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        pytest.param(
            {"command": ["sh", "-c", "touch /models/x"], "args": []}, "runs only", id="shell"
        ),
        pytest.param({"command": ["/bin/sd-loader"]}, "runs only", id="path"),
        pytest.param(
            {"args": ["load", "--request", "{}", "--store", "/models"]}, "runs only", id="command"
        ),
        pytest.param(
            {"args": ["convert", "--request", "{}", "--store", "/models", "--x"]},
            "runs only",
            id="option",
        ),
        pytest.param(
            {"args": ["sweep", "--store", "/models", "--delete", "--x"]},
            "runs only",
            id="option of a sweep",
        ),
        pytest.param(
            {"args": ["sweep", "--store", "/", "--delete"]}, "--store /", id="store of a sweep"
        ),
        pytest.param(
            {"args": ["convert", "--request", "{}", "--store", "/models"]},
            "does not parse",
            id="request",
        ),
        pytest.param(
            {"args": ["convert", "--request", request("x"), "--store", "/"]},
            "--store /",
            id="store",
        ),
        pytest.param(
            {"args": ["remove", "--request", request("x"), "--store", "/models"]},
            "does not parse",
            id="request-of-another-command",
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
            id="variable",
        ),
    ],
)
def test_only_the_loader_is_run(shared_stub_cluster, changes, complaint):
    """Whatever else a container asks for fails its Pod, with a message, and is not run."""
    name = f"j{secrets.token_hex(4)}"
    pod = pod_spec(initContainers=[], containers=[container("convert", **changes)])
    shared_stub_cluster.apply(job(name, pod=pod))

    failed = wait_for_pod(shared_stub_cluster, name, "Failed")

    assert complaint in failed["status"]["message"]
    state = failed["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("StartError", 128)
    shared_stub_cluster.wait_for("job", name, has_condition("Failed"))
    assert list(shared_stub_cluster.store.iterdir()) == []


def test_a_volume_of_another_kind_fails_the_pod(stub_cluster):
    """Nothing else of this machine is ever mounted."""
    volumes = [*VOLUMES, {"name": "root", "hostPath": {"path": "/"}}]
    stub_cluster.apply(job("j", pod=pod_spec(volumes=volumes)))

    failed = wait_for_pod(stub_cluster, "j", "Failed")

    assert "volume root" in failed["status"]["message"]


def test_logs_can_be_followed(stub_cluster):
    """`kubectl logs -f` prints what comes, and ends with the container."""
    stub_cluster.apply(job("j", "convert.sleep=1"))
    pod = wait_for_pod(stub_cluster, "j")

    followed = stub_cluster.kubectl("logs", "-f", pod["metadata"]["name"])

    assert followed == "convert begins\nconvert ends\n"


def test_logs_of_a_container_that_has_not_started_are_refused(stub_cluster):
    """The answer says that it waits."""
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
    assert stub_cluster.kubectl("logs", name, "-c=fetch") == "fetch begins\n"
