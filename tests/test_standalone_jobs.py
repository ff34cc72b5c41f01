"""Jobs, Pods, garbage collection: standalone's, or a real controller manager's."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, claim_manifest, model_manifest, running
from kubectl import kubectl_path

pytestmark = pytest.mark.cluster

Json = dict[str, Any]

FAIL_AT_ONCE = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}},
    ]
}
MOUNTS = [
    {"name": "models", "mountPath": "/models"},
    {"name": "tmp", "mountPath": "/tmp"},
]
VOLUMES = [
    {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
    {"name": "tmp", "emptyDir": {}},
]


def request(steps: str) -> str:
    """A LoadRequest that tells stubloader.py what to do."""
    owner = {"uid": "u", "namespace": "n", "name": "m"}
    fields = {"modelId": "m", "modelType": "custom_ckpt", "url": steps, "loadHash": "0" * 16}
    return json.dumps({"owner": owner, **fields})


def container(name: str, steps: str = "x", **changes: object) -> Json:
    """One of the loader's containers."""
    return {
        "name": name,
        "image": "sd-loader:test",
        "command": ["sd-loader"],
        "args": [name, "--request", request(steps), "--store", "/models"],
        "env": [
            {"name": "SD_LOADER_TERMINATION_LOG", "value": "/dev/termination-log"},
            {"name": "HOME", "value": "/tmp/home/.."},
            {"name": "SD_LOADER_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "volumeMounts": MOUNTS,
        **changes,
    }


def pod_spec(steps: str = "x", **changes: object) -> Json:
    """The loader's Pod."""
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 2,
        "initContainers": [container("fetch", steps)],
        "containers": [container("convert", steps)],
        "volumes": VOLUMES,
        **changes,
    }


def job(name: str, steps: str = "x", pod: Json | None = None, **changes: object) -> Json:
    """A loader Job."""
    template = {"metadata": {"labels": {"app": "x"}}, "spec": pod or pod_spec(steps)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **changes},
    }


def has_condition(kind: str, value: str = "True"):
    """A test of an object for a condition."""

    def test(item: Json) -> bool:
        found = item.get("status", {}).get("conditions", [])
        return any(entry["type"] == kind and entry["status"] == value for entry in found)

    return test


def condition(item: Json, kind: str) -> Json:
    """One condition."""
    return next(entry for entry in item["status"]["conditions"] if entry["type"] == kind)


def pods_of(cluster: Cluster, name: str) -> list[Json]:
    """The Pods of a Job."""
    return cluster.list("pods", f"--selector=batch.kubernetes.io/job-name={name}")


def wait_for_pod(cluster: Cluster, name: str, phase: str = "Running") -> Json:
    """The Job's only Pod, once it is in a phase."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pods = pods_of(cluster, name)
        if len(pods) == 1 and pods[0].get("status", {}).get("phase") == phase:
            return pods[0]
        time.sleep(0.1)
    raise AssertionError(f"{name} has no Pod that is {phase}: {pods}")


def is_alive(pid: int) -> bool:
    """Whether a process runs (and is no zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_dead(pid: int) -> None:
    """Wait until a process is gone."""
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)


def child_of(cluster: Cluster) -> int:
    """The process that a Pod's `child` step has started."""
    path = cluster.store / "child.pid"
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())


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
    """Its activeDeadlineSeconds over, first the Pod is ended, then the Job."""
    stub_cluster.apply(job("j", "convert.child=60 convert.sleep=60", activeDeadlineSeconds=2))
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


def test_standalone_leaves_nothing_running(tmp_path):
    """SIGTERM ends every process, the children of Pods too, and removes the kubeconfig."""
    kubeconfig, store = tmp_path / "kubeconfig", tmp_path / "store"
    here = Path(__file__).parent
    command = [sys.executable, str(here / "clusterstub.py"), "--store", str(store)]
    command += [
        "--kubeconfig",
        str(kubeconfig),
        "--loader",
        sys.executable,
        str(here / "stubloader.py"),
    ]
    with running(command, tmp_path / "log", kubeconfig.exists):
        assert kubeconfig.stat().st_mode & 0o777 == 0o600
        manifest = json.dumps(job("j", "convert.child=60 convert.sleep=60"))
        subprocess.run(
            [str(kubectl_path()), f"--kubeconfig={kubeconfig}", "apply", "-f", "-"],
            input=manifest.encode(),
            check=True,
            timeout=30,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not (store / "child.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int((store / "child.pid").read_text())
        assert is_alive(child)

    assert not is_alive(child)
    assert not kubeconfig.exists()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_standalone_does_not_touch_another_clusters_kubeconfig(tmp_path):
    """The file is written and removed: a user's own is refused."""
    own = tmp_path / "config"
    own.write_text("apiVersion: v1\nkind: Config\ncurrent-context: production\n")
    command = [
        sys.executable,
        "-m",
        "sd_operator",
        "standalone",
        "--store",
        str(tmp_path / "store"),
    ]

    done = subprocess.run(
        [*command, "--kubeconfig", str(own)], capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 1
    assert "another cluster's kubeconfig" in done.stderr
    assert "production" in own.read_text()
