"""Jobs and garbage collection: standalone's, or a real controller manager's."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.kube.cluster import model_manifest
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


def test_a_job_runs_its_pod_to_completion(stub_cluster):
    """Init container, container, termination messages, logs, conditions, Events."""
    stub_cluster.apply(job("j", "fetch.say=fetched convert.touch=made"))

    done = stub_cluster.wait_for("job", "j", has_condition("Complete"))

    assert done["status"]["succeeded"] == 1
    assert done["status"].get("active", 0) == 0
    assert "completionTime" in done["status"]
    assert condition(done, "Complete")["reason"] == "CompletionsReached"
    (pod,) = pods_of(stub_cluster, "j")
    assert pod["metadata"]["labels"] == {
        "app": "x",
        **done["spec"]["selector"]["matchLabels"],
        "controller-uid": done["metadata"]["uid"],
        "job-name": "j",
        "batch.kubernetes.io/job-name": "j",
    }
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"], owner["blockOwnerDeletion"]) == ("Job", True, True)
    assert pod["status"]["phase"] == "Succeeded"
    fetched = pod["status"]["initContainerStatuses"][0]["state"]["terminated"]
    assert (fetched["message"], fetched["exitCode"], fetched["reason"]) == (
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


def test_a_container_sees_its_own_world_only(stub_cluster):
    """Paths are this machine's, variables the container's; Secrets are private files."""
    stub_cluster.kubectl("create", "secret", "generic", "s", "--from-literal=token=abc")
    directory = {"name": "SD_LOADER_CREDENTIALS_DIR", "value": "/run/secrets/sd"}
    fetch = container("fetch")
    fetch["env"].append(directory)
    fetch["volumeMounts"] = [*MOUNTS, {"name": "credentials", "mountPath": "/run/secrets/sd"}]
    volumes = [*VOLUMES, {"name": "credentials", "secret": {"secretName": "s", "optional": True}}]
    stub_cluster.apply(job("j", pod=pod_spec(initContainers=[fetch], volumes=volumes)))

    pod = wait_for_pod(stub_cluster, "j", "Succeeded")

    (init,) = pod["status"]["initContainerStatuses"]
    found = json.loads(init["state"]["terminated"]["message"])
    assert found["command"] == "fetch"
    assert Path(found["store"]) == stub_cluster.store
    assert found["home_exists"] is False  # /tmp/home was never made
    assert found["home"].endswith("/tmp/home/..")
    assert not found["home"].startswith("/tmp/home")
    assert found["pod"] == pod["metadata"]["name"]
    given = {
        "HOME",
        "PATH",
        "SD_LOADER_CREDENTIALS_DIR",
        "SD_LOADER_POD",
        "SD_LOADER_TERMINATION_LOG",
    }
    assert set(found["variables"]) - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"} == given
    assert (found["token"], found["mode"]) == ("abc", "0o600")
    (main,) = pod["status"]["containerStatuses"]
    assert json.loads(main["state"]["terminated"]["message"])["token"] is None


def test_a_permanent_failure_of_the_init_container_fails_the_job_at_once(stub_cluster):
    """The podFailurePolicy holds for init containers too; the message can be read."""
    steps = "fetch.exit=3 fetch.say=no"
    stub_cluster.apply(job("j", steps, backoffLimit=3, podFailurePolicy=FAIL_AT_ONCE))

    failed = stub_cluster.wait_for("job", "j", has_condition("Failed"))

    why = condition(failed, "Failed")
    assert why["reason"] == "PodFailurePolicy"
    assert "Container fetch for pod" in why["message"]
    assert "failed with exit code 3 matching FailJob rule at index 1" in why["message"]
    assert condition(failed, "FailureTarget")["reason"] == "PodFailurePolicy"
    (pod,) = pods_of(stub_cluster, "j")
    assert pod["status"]["phase"] == "Failed"
    state = pod["status"]["initContainerStatuses"][0]["state"]["terminated"]
    assert (state["exitCode"], state["reason"], state["message"]) == (3, "Error", "no")
    assert "waiting" in pod["status"]["containerStatuses"][0]["state"]


def test_a_passing_failure_is_tried_again_up_to_the_limit(stub_cluster):
    """A backoffLimit counts the failures that are let pass."""
    limit = 1 if stub_cluster.backend.controllers else 0  # a real one waits 10 s before the second
    stub_cluster.apply(job("j", "convert.exit=1", backoffLimit=limit))

    failed = stub_cluster.wait_for("job", "j", has_condition("Failed"))

    assert condition(failed, "Failed")["reason"] == "BackoffLimitExceeded"
    assert failed["status"]["failed"] == limit + 1
    assert len(pods_of(stub_cluster, "j")) == limit + 1


def test_a_job_ends_at_its_deadline(stub_cluster):
    """After activeDeadlineSeconds first the Pod ends, then the Job."""
    # Even on a busy machine the first container starts before that.
    stub_cluster.apply(job("j", "fetch.child=60 fetch.sleep=60", activeDeadlineSeconds=4))
    child = child_of(stub_cluster)

    failed = stub_cluster.wait_for("job", "j", has_condition("Failed"))

    assert condition(failed, "Failed")["reason"] == "DeadlineExceeded"
    wait_dead(child)


def test_a_suspended_job_has_no_pod_until_it_is_resumed(stub_cluster):
    """To suspend deletes the running Pod; resuming starts another."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    wait_for_pod(stub_cluster, "j")
    running_job = stub_cluster.wait_for("job", "j", lambda j: j["status"].get("ready") == 1)
    assert running_job["status"]["active"] == 1

    patch = ["patch", "job", "j", "--type=strategic", "-p"]
    stub_cluster.kubectl(*patch, '{"spec":{"suspend":true}}')
    stub_cluster.wait_for("job", "j", has_condition("Suspended"))
    deadline = time.monotonic() + 20
    while pods_of(stub_cluster, "j"):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    stub_cluster.kubectl(*patch, '{"spec":{"suspend":false}}')
    wait_for_pod(stub_cluster, "j")
    assert condition(stub_cluster.get("job", "j"), "Suspended")["status"] == "False"


def test_a_finished_job_goes_when_its_time_is_over(stub_cluster):
    """Its ttlSecondsAfterFinished over, a Job is removed with its Pod."""
    stub_cluster.apply(job("j", "convert.touch=made", ttlSecondsAfterFinished=1))

    stub_cluster.wait_gone("job", "j")

    assert (stub_cluster.store / "made").exists()
    deadline = time.monotonic() + 10
    while pods_of(stub_cluster, "j"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_deleting_a_job_in_the_background_ends_its_processes(stub_cluster):
    """The Pod goes after the Job, the whole process group with it."""
    stub_cluster.apply(job("j", "convert.child=60 convert.sleep=60"))
    child = child_of(stub_cluster)
    (pod,) = pods_of(stub_cluster, "j")

    stub_cluster.kubectl("delete", "job", "j", "--cascade=background")

    stub_cluster.wait_gone("pod", pod["metadata"]["name"])
    wait_dead(child)


def test_deleting_a_job_in_the_foreground_waits_for_its_pod(stub_cluster):
    """The Job stays, marked, until its Pod is gone."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    pod = wait_for_pod(stub_cluster, "j")

    stub_cluster.kubectl("delete", "job", "j", "--cascade=foreground", "--wait=true")

    assert not stub_cluster.exists("job", "j")
    assert not stub_cluster.exists("pod", pod["metadata"]["name"])


def test_deleting_a_job_can_leave_its_pod(stub_cluster):
    """With orphan the Pod runs on and has no owner."""
    stub_cluster.apply(job("j", "convert.sleep=60"))
    pod = wait_for_pod(stub_cluster, "j")

    stub_cluster.kubectl("delete", "job", "j", "--cascade=orphan")

    stub_cluster.wait_gone("job", "j")
    left = stub_cluster.get("pod", pod["metadata"]["name"])
    assert "ownerReferences" not in left["metadata"]
    assert left["status"]["phase"] == "Running"
    stub_cluster.kubectl("delete", "pod", pod["metadata"]["name"])


def test_a_deleted_pod_tells_its_end_before_it_goes(stub_cluster):
    """Controllers hold it by a finalizer until they have counted it."""
    held = {"metadata": {"finalizers": ["example.com/count"]}}
    freed = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/count"]}}
    stub_cluster.apply(job("j", "convert.sleep=60"))
    name = wait_for_pod(stub_cluster, "j")["metadata"]["name"]
    stub_cluster.kubectl("patch", "pod", name, "-p", json.dumps(held))

    stub_cluster.kubectl("delete", "pod", name, "--wait=false")

    pod = stub_cluster.wait_for("pod", name, lambda one: one["status"]["phase"] == "Failed")
    (ended,) = pod["status"]["containerStatuses"]
    assert ended["state"]["terminated"]["exitCode"] == 128 + signal.SIGTERM
    stub_cluster.kubectl("patch", "pod", name, "-p", json.dumps(freed))
    stub_cluster.wait_gone("pod", name)


def test_a_deleted_model_takes_its_job_along(stub_cluster):
    """The garbage collector follows owner references over two steps."""
    stub_cluster.apply(model_manifest("m", url="https://example.com/m.ckpt"))
    model = stub_cluster.get("sdm", "m")
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

    stub_cluster.kubectl("delete", "sdm", "m")

    stub_cluster.wait_gone("job", "j")
    stub_cluster.wait_gone("pod", pod["metadata"]["name"])


def test_a_job_of_an_owner_that_never_was_is_collected(stub_cluster):
    """An owner with another uid is no owner: a namesake inherits nothing."""
    stub_cluster.apply(model_manifest("m", url="https://example.com/m.ckpt"))
    owned = job("j", suspend=True)
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "sd-operator.dev/v1alpha1", "kind": "StableDiffusionModel"}
        | {"name": "m", "uid": "00000000-0000-0000-0000-000000000000"}
    ]
    stub_cluster.apply(owned)

    stub_cluster.wait_gone("job", "j")
    assert stub_cluster.exists("sdm", "m")
