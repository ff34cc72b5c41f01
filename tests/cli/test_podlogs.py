"""`kubectl sdm logs` prints the logs of the containers that have started, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from sd_operator.cli import podlogs
from sd_operator.cli.kubectl import KubectlError

RUNNING, ENDED, WAITING = {"running": {}}, {"terminated": {"exitCode": 3}}, {"waiting": {}}


def pod(fetch: dict[str, Any], convert: dict[str, Any], phase: str, name: str = "p") -> Any:
    """Return a loader Pod with the states of its containers."""
    return {
        "metadata": {"name": name, "creationTimestamp": f"2026-01-01T00:00:0{len(name)}Z"},
        "spec": {"initContainers": [{"name": "fetch"}], "containers": [{"name": "convert"}]},
        "status": {
            "phase": phase,
            "initContainerStatuses": [{"name": "fetch", "state": fetch}],
            "containerStatuses": [{"name": "convert", "state": convert}],
        },
    }


class Recorder:
    """Stands for kubectl: it has Pods, and records whose logs it was asked for."""

    def __init__(self, *pods: Any, later: Any = None) -> None:
        self.pods = list(pods)
        self.later = later
        self.asked: list[tuple[str, ...]] = []

    def list(self, _kind: str, **_options: Any) -> list[Any]:
        """Return the Pods of the Job."""
        return self.pods

    def get(self, _kind: str, _name: str) -> Any:
        """Return the Pod as it is later."""
        return self.later

    def follow(self, *arguments: str) -> int:
        """Record the arguments of kubectl logs."""
        self.asked.append(arguments[1:3])
        return 0


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between two reads of a Pod."""
    monkeypatch.setattr(podlogs, "POLL_SECONDS", 0)


def test_logs_of_a_failed_fetch_leave_out_the_container_that_never_started() -> None:
    """The log of a container that never started is not requested: it would be a BadRequest."""
    kubectl = Recorder(pod(ENDED, WAITING, "Failed"))
    assert podlogs.show(kubectl, "job") == 0
    assert kubectl.asked == [("pod/p", "--container=fetch")]


def test_logs_of_the_newest_pod_are_shown() -> None:
    """If a Job has several Pods, the logs of the newest Pod are shown."""
    kubectl = Recorder(pod(ENDED, ENDED, "Failed"), pod(ENDED, RUNNING, "Running", "newer"))
    podlogs.show(kubectl, "job")
    assert kubectl.asked == [
        ("pod/newer", "--container=fetch"),
        ("pod/newer", "--container=convert"),
    ]


def test_followed_logs_wait_for_the_next_container() -> None:
    """With `follow`, the log of convert is shown once convert has started, after fetch."""
    kubectl = Recorder(pod(RUNNING, WAITING, "Pending"), later=pod(ENDED, RUNNING, "Running"))
    podlogs.show(kubectl, "job", follow=True)
    assert [container for _, container in kubectl.asked] == [
        "--container=fetch",
        "--container=convert",
    ]


def test_followed_logs_end_if_the_next_container_cannot_start() -> None:
    """With `follow`, the command ends after a failed fetch, since convert never starts."""
    kubectl = Recorder(pod(RUNNING, WAITING, "Pending"), later=pod(ENDED, WAITING, "Failed"))
    podlogs.show(kubectl, "job", follow=True)
    assert kubectl.asked == [("pod/p", "--container=fetch")]


def test_job_without_a_pod_is_an_error_with_the_next_step() -> None:
    """The message names a command that shows the cause."""
    with pytest.raises(KubectlError, match=r"Job job has no Pod.*kubectl sdm status"):
        podlogs.show(Recorder(), "job")
