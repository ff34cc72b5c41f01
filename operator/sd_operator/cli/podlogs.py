"""Prints the logs of a Job's newest Pod, container by container.

`kubectl logs --all-containers` would fail if one container has not started: after a failed `fetch`,
`convert` never starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sd_operator.cli.kubectl import Json, Kubectl, KubectlError

POLL_SECONDS = 1.0
_JOB_LABEL = "batch.kubernetes.io/job-name"


def show(kubectl: Kubectl, job: str, *, follow: bool = False) -> int:
    """Print the logs of the Job's newest Pod, without containers that have not started.

    Stop at the first `kubectl logs` that fails, and return its exit code; else return 0. Raise
    KubectlError if the Job has no Pod. follow: wait for each container to start, and print its
    lines until it ends.
    """
    pods = kubectl.list("pods", labels=f"{_JOB_LABEL}={job}")
    if not pods:
        raise KubectlError(
            f"Job {job} has no Pod: it has not started one yet, or its Pods were removed;"
            " run kubectl sdm status to see what the model waits for"
        )
    pod = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    name = pod["metadata"]["name"]
    for container in _containers(pod):
        if follow:
            pod = _wait_for(kubectl, pod, container)
        if not has_started(pod, container):
            continue
        options = ["--prefix", "--tail=-1", *(["--follow"] if follow else [])]
        code = kubectl.follow("logs", f"pod/{name}", f"--container={container}", *options)
        if code:
            return code
    return 0


def has_started(pod: Json, container: str) -> bool:
    """Return whether the container runs or has run, so that it has a log."""
    status = pod.get("status", {})
    for state in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        if state["name"] == container:
            current = state.get("state", {})
            return "running" in current or "terminated" in current
    return False


def _containers(pod: Json) -> Sequence[str]:
    spec = pod["spec"]
    return [c["name"] for c in (*spec.get("initContainers", []), *spec["containers"])]


def _wait_for(kubectl: Kubectl, pod: Json, container: str) -> Json:
    """Wait until the container has started or the Pod has ended. Return the newest Pod object."""
    while not has_started(pod, container) and pod["status"].get("phase") in ("Pending", "Running"):
        time.sleep(POLL_SECONDS)
        pod = kubectl.get("pod", pod["metadata"]["name"])
    return pod
