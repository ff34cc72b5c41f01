"""Creates loader Jobs that do what a test needs, and waits for their results."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.support.kube.cluster import Cluster

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
    """Return a LoadRequest whose url tells stubloader.py what to do."""
    owner = {"uid": "u", "namespace": "n", "name": "m"}
    fields = {"modelId": "m", "modelType": "custom_ckpt", "url": steps, "loadHash": "0" * 16}
    return json.dumps({"owner": owner, **fields})


def container(name: str, steps: str = "x", **changes: object) -> Json:
    """Return one of the loader's containers."""
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
    """Return the Pod spec of a loader Job."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,  # standalone's node has no such volume
        "terminationGracePeriodSeconds": 2,
        "initContainers": [container("fetch", steps)],
        "containers": [container("convert", steps)],
        "volumes": VOLUMES,
        **changes,
    }


def job(name: str, steps: str = "x", pod: Json | None = None, **changes: object) -> Json:
    """Return a loader Job."""
    template = {"metadata": {"labels": {"app": "x"}}, "spec": pod or pod_spec(steps)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **changes},
    }


def has_condition(kind: str, value: str = "True"):
    """Return a check that an object has a condition with this status."""

    def test(item: Json) -> bool:
        found = item.get("status", {}).get("conditions", [])
        return any(entry["type"] == kind and entry["status"] == value for entry in found)

    return test


def condition(item: Json, kind: str) -> Json:
    """Return a condition of an object."""
    return next(entry for entry in item["status"]["conditions"] if entry["type"] == kind)


def pods_of(cluster: Cluster, name: str) -> list[Json]:
    """Return the Pods of a Job."""
    return cluster.list("pods", labelSelector=f"batch.kubernetes.io/job-name={name}")


def wait_for_pod(cluster: Cluster, name: str, phase: str = "Running") -> Json:
    """Wait until the Job's only Pod is in a phase, and return it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pods = pods_of(cluster, name)
        if len(pods) == 1 and pods[0].get("status", {}).get("phase") == phase:
            return pods[0]
        time.sleep(0.1)
    raise AssertionError(f"{name} has no Pod that is {phase}: {pods}")


def is_alive(pid: int) -> bool:
    """Return whether a process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_dead(pid: int) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)


def child_of(cluster: Cluster) -> int:
    """Return the id of the process that a Pod's `child` step started."""
    path = cluster.store / "child.pid"
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())
