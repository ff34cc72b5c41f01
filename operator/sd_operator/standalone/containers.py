"""A container of a Pod with its current state, as the Pod's status reports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from sd_operator.standalone.errors import Json
from sd_operator.standalone.executor import Process
from sd_operator.standalone.jobs import show

LOST = 137
"""The exit code of a container whose end was not observed. The kubelet uses the same code."""
LOST_MESSAGE = "the Pod was running when the node restarted"


@dataclass
class Container:
    """A container of a Pod with its current state."""

    spec: Json
    """The container's entry in the Pod's spec."""
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    process: Process | None = None

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.spec["name"])

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the container has not ended."""
        code: int | None = self.state.get("terminated", {}).get("exitCode")
        return code

    def end_lost(self, status: Json) -> None:
        """Take the state from the Pod's status, which an earlier run of standalone wrote.

        A container that was running then has ended with the exit code LOST.
        """
        entries = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
        self.state = next((e["state"] for e in entries if e["name"] == self.name), self.state)
        if "running" in self.state:
            self.end(LOST, LOST_MESSAGE, "ContainerStatusUnknown")

    def end(self, code: int, message: str, reason: str = "") -> None:
        """Set the state to terminated."""
        started = self.state.get("running", {}).get("startedAt") or now()
        reason = reason or ("Completed" if code == 0 else "Error")
        state = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}
        self.state = {"terminated": state | ({"message": message} if message else {})}

    def status(self, is_init: bool) -> Json:
        """Return the container's entry in the Pod's status."""
        running = "running" in self.state
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "",
            "restartCount": 0,
            "ready": self.exit_code == 0 if is_init else running,
            "started": running,
            "state": self.state,
        }


def now() -> str:
    """Return the current time as Kubernetes formats it."""
    return show(datetime.now(UTC))
