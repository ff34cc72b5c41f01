"""Tests of Jobs and garbage collection. They also hold for a real controller manager."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.kube.cluster import secret_manifest
from tests.support.kube.stubjobs import (
    FAIL_AT_ONCE,
    MOUNTS,
    VOLUMES,
    child_of,
    condition,
    container,
    has_condition,
    job,
    pod_spec,
    pods_of,
    wait_dead,
    wait_for_pod,
)

pytestmark = pytest.mark.cluster


def test_job_runs_its_pod_to_completion(stub_cluster):
    """Containers, termination messages, logs, conditions and Events are those of Kubernetes."""
    stub_cluster.apply(job("j", "fetch.say=fetched convert.touch=made"))

    completed = stub_cluster.wait_for("job", "j", has_condition("Complete"))

    assert completed["status"]["succeeded"] == 1
    assert completed["status"].get("active", 0) == 0
    assert "completionTime" in completed["status"]
    assert condition(completed, "Complete")["reason"] == "CompletionsReached"
    (pod,) = pods_of(stub_cluster, "j")
    assert pod["metadata"]["labels"] == {
        "app": "x",
        **completed["spec"]["selector"]["matchLabels"],
        "controller-uid": completed["metadata"]["uid"],
        "job-name": "j",
        "batch.kubernetes.io/job-name": "j",
    }
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"], owner["blockOwnerDeletion"]) == ("Job", True, True)
    assert pod["status"]["phase"] == "Succeeded"
    fetch = pod["status"]["initContainerStatuses"][0]["state"]["terminated"]
    assert (fetch["message"], fetch["exitCode"], fetch["reason"]) == (
        "fetched",
        0,
        "Completed",
    )
    name = pod["metadata"]["name"]
    assert stub_cluster.kubectl("logs", name) == "convert begins\nconvert ends\n"
    assert stub_cluster.kubectl("logs", name, "-c=fetch", "--tail=1") == "fetch ends\n"
    assert (stub_cluster.store / "made").exists()
    reasons = [reason for reason, _ in stub_cluster.events("j")]
    assert {"SuccessfulCreate", "Completed"} <= set(reasons)
    row = stub_cluster.kubectl("get", "job", "j").splitlines()[1].split()
    assert row[:3] == ["j", "Complete", "1/1"]


def test_container_gets_only_its_own_variables_and_volumes(stub_cluster):
    """Paths are translated to this machine, and files of a Secret are private."""
    stub_cluster.apply(secret_manifest("s", token="abc"))
    directory = {"name": "SD_LOADER_CREDENTIALS_DIR", "value": "/run/secrets/sd"}
    fetch = container("fetch")
    fetch["env"].append(directory)
    fetch["volumeMounts"] = [*MOUNTS, {"name": "credentials", "mountPath": "/run/secrets/sd"}]
    volumes = [*VOLUMES, {"name": "credentials", "secret": {"secretName": "s", "optional": True}}]
    stub_cluster.apply(job("j", pod=pod_spec(initContainers=[fetch], volumes=volumes)))

    pod = wait_for_pod(stub_cluster, "j", "Succeeded")

    (init,) = pod["status"]["initContainerStatuses"]
    report = json.loads(init["state"]["terminated"]["message"])
    assert report["command"] == "fetch"
    assert Path(report["store"]) == stub_cluster.store
    assert report["home_exists"] is False  # nothing creates /tmp/home
    assert report["home"].endswith("/tmp/home/..")
    assert not report["home"].startswith("/tmp/home")
    assert report["pod"] == pod["metadata"]["name"]
    expected = {
        "HOME",
        "PATH",
        "SD_LOADER_CREDENTIALS_DIR",
        "SD_LOADER_POD",
        "SD_LOADER_TERMINATION_LOG",
    }
    assert set(report["variables"]) - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"} == expected
    assert (report["token"], report["mode"]) == ("abc", "0o600")
    (main,) = pod["status"]["containerStatuses"]
    assert json.loads(main["state"]["terminated"]["message"])["token"] is None


def test_init_containers_permanent_failure_fails_the_job_at_once(stub_cluster):
    """The podFailurePolicy applies to init containers, and their termination message is kept."""
    steps = "fetch.exit=3 fetch.say=no"
    stub_cluster.apply(job("j", steps, backoffLimit=3, podFailurePolicy=FAIL_AT_ONCE))

    failed = stub_cluster.wait_for("job", "j", has_condition("Failed"))

    failure = condition(failed, "Failed")
    assert failure["reason"] == "PodFailurePolicy"
    assert "Container fetch for pod" in failure["message"]
    assert "failed with exit code 3 matching FailJob rule at index 1" in failure["message"]
    assert condition(failed, "FailureTarget")["reason"] == "PodFailurePolicy"
    (pod,) = pods_of(stub_cluster, "j")
    assert pod["status"]["phase"] == "Failed"
    state = pod["status"]["initContainerStatuses"][0]["state"]["terminated"]
    assert (state["exitCode"], state["reason"], state["message"]) == (3, "Error", "no")
    assert "waiting" in pod["status"]["containerStatuses"][0]["state"]


def test_transient_failure_is_retried_up_to_the_backoff_limit(stub_cluster):
    """The Job fails after backoffLimit + 1 failed Pods."""
    # A real controller waits 10 s before the second attempt, which would make the test slow.
    limit = 1 if stub_cluster.backend.controllers else 0
    stub_cluster.apply(job("j", "convert.exit=1", backoffLimit=limit))

    failed = stub_cluster.wait_for("job", "j", has_condition("Failed"))

    assert condition(failed, "Failed")["reason"] == "BackoffLimitExceeded"
    assert failed["status"]["failed"] == limit + 1
    assert len(pods_of(stub_cluster, "j")) == limit + 1


def test_job_ends_at_its_deadline(stub_cluster):
    """After activeDeadlineSeconds the Pod's processes are ended and the Job fails."""
    # Even on a busy machine the first container starts within the deadline.
    stub_cluster.apply(job("j", "fetch.child=60 fetch.sleep=60", activeDeadlineSeconds=4))
    child = child_of(stub_cluster)

    failed = stub_cluster.wait_for("job", "j", has_condition("Failed"))

    assert condition(failed, "Failed")["reason"] == "DeadlineExceeded"
    wait_dead(child)


def test_suspended_job_has_no_pod_until_it_is_resumed(stub_cluster):
    """Suspending deletes the running Pod, and resuming starts a new one."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    wait_for_pod(stub_cluster, "j")
    running_job = stub_cluster.wait_for("job", "j", lambda j: j["status"].get("ready") == 1)
    assert running_job["status"]["active"] == 1

    stub_cluster.patch("job", "j", {"spec": {"suspend": True}})
    stub_cluster.wait_for("job", "j", has_condition("Suspended"))
    deadline = time.monotonic() + 20
    while pods_of(stub_cluster, "j"):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    stub_cluster.patch("job", "j", {"spec": {"suspend": False}})
    wait_for_pod(stub_cluster, "j")
    assert condition(stub_cluster.get("job", "j"), "Suspended")["status"] == "False"


def test_finished_job_is_deleted_after_its_ttl(stub_cluster):
    """After ttlSecondsAfterFinished the Job and its Pod are deleted; files on the PVC stay."""
    stub_cluster.apply(job("j", "convert.touch=made", ttlSecondsAfterFinished=1))

    stub_cluster.wait_gone("job", "j")

    assert (stub_cluster.store / "made").exists()
    deadline = time.monotonic() + 10
    while pods_of(stub_cluster, "j"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_deleting_a_job_in_the_background_ends_its_processes(stub_cluster):
    """The Pod is deleted after the Job, and its whole process group ends."""
    stub_cluster.apply(job("j", "convert.child=60 convert.sleep=60"))
    child = child_of(stub_cluster)
    (pod,) = pods_of(stub_cluster, "j")

    stub_cluster.delete("job", "j")

    stub_cluster.wait_gone("pod", pod["metadata"]["name"])
    wait_dead(child)


def test_deleting_a_job_in_the_foreground_waits_for_its_pod(stub_cluster):
    """Once the Job is gone, its Pod is gone, too."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    pod = wait_for_pod(stub_cluster, "j")

    stub_cluster.delete("job", "j", "Foreground")

    stub_cluster.wait_gone("job", "j")
    assert not stub_cluster.exists("pod", pod["metadata"]["name"])


def test_deleting_a_job_can_orphan_its_pod(stub_cluster):
    """With the policy Orphan the Pod keeps running and loses its owner."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    pod = wait_for_pod(stub_cluster, "j")

    stub_cluster.delete("job", "j", "Orphan")

    stub_cluster.wait_gone("job", "j")
    orphan = stub_cluster.get("pod", pod["metadata"]["name"])
    assert "ownerReferences" not in orphan["metadata"]
    assert orphan["status"]["phase"] == "Running"
    stub_cluster.delete("pod", pod["metadata"]["name"])


def test_deleted_pod_reports_its_end_before_it_goes(stub_cluster):
    """A deleted Pod that a finalizer holds has the phase Failed and its container's exit code."""
    hold = {"metadata": {"finalizers": ["example.com/count"]}}
    release = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/count"]}}
    stub_cluster.apply(job("j", "convert.sleep=60"))
    name = wait_for_pod(stub_cluster, "j")["metadata"]["name"]
    stub_cluster.patch("pod", name, hold)

    stub_cluster.delete("pod", name)

    pod = stub_cluster.wait_for("pod", name, lambda body: body["status"]["phase"] == "Failed")
    (status,) = pod["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 128 + signal.SIGTERM
    stub_cluster.kubectl("patch", "pod", name, "-p", json.dumps(release))
    stub_cluster.wait_gone("pod", name)


def test_deleting_a_model_deletes_its_job_and_pod(stub_cluster):
    """After a model is deleted, the Job that it owns goes, and the Pod that the Job owns."""
    model = stub_cluster.model("m", url="https://example.com/m.ckpt")
    owner = {
        "apiVersion": model["apiVersion"],
        "kind": model["kind"],
        "name": "m",
        "uid": model["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    owned = job("j", "convert.sleep=60")
    owned["metadata"]["ownerReferences"] = [owner]
    stub_cluster.apply(owned)
    pod = wait_for_pod(stub_cluster, "j")

    stub_cluster.delete("sdm", "m")

    stub_cluster.wait_gone("job", "j")
    stub_cluster.wait_gone("pod", pod["metadata"]["name"])


def test_job_of_an_owner_that_does_not_exist_is_deleted(stub_cluster):
    """A Job is deleted if its owner is gone, even if another object has the owner's name."""
    stub_cluster.model("m", url="https://example.com/m.ckpt")
    owned = job("j", suspend=True)
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "sd-operator.dev/v1alpha1", "kind": "StableDiffusionModel"}
        | {"name": "m", "uid": "00000000-0000-0000-0000-000000000000"}
    ]
    stub_cluster.apply(owned)

    stub_cluster.wait_gone("job", "j")
    assert stub_cluster.exists("sdm", "m")
