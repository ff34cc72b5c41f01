"""What the cluster shows of a model's Jobs, Pods and claim, read into small frozen views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sd_api import names
from sd_api.wire import LoadResult, Progress
from sd_operator.base import times

_EPOCH = datetime.fromtimestamp(0, UTC)
WARNING_LOOK_SECONDS = 60.0
"""How often the Events of a Job without Pods are looked at."""


class JobState(StrEnum):
    """How a Job stands."""

    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class JobView:
    """One Job of ours. failure and detail: reason and message of its condition Failed.

    started: when its Pods were first let run, or last, if it was suspended since.
    """

    name: str
    namespace: str
    uid: str
    model_uid: str
    role: str
    load_hash: str
    attempt: int
    resource_version: str
    created: datetime
    state: JobState = JobState.RUNNING
    ended: datetime | None = None
    failure: str = ""
    detail: str = ""
    deleting: bool = False
    suspended: bool = False
    started: datetime | None = None
    ready: int = 0

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> JobView:
        """Read a Job."""
        metadata = body["metadata"]
        labels = metadata.get("labels") or {}
        annotations = metadata.get("annotations") or {}
        status = body.get("status") or {}
        state, ended, failure, detail = _job_end(status)
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            model_uid=labels.get(names.LABEL_MODEL_UID, ""),
            role=labels.get(names.LABEL_ROLE, ""),
            load_hash=annotations.get(names.ANNOTATION_LOAD_HASH, ""),
            attempt=_whole(annotations.get(names.ANNOTATION_ATTEMPT)),
            resource_version=metadata.get("resourceVersion") or "",
            created=times.parse(metadata.get("creationTimestamp")) or _EPOCH,
            state=state,
            ended=ended,
            failure=failure,
            detail=detail,
            deleting="deletionTimestamp" in metadata,
            suspended=bool((body.get("spec") or {}).get("suspend")),
            started=times.parse(status.get("startTime")),
            ready=_whole(status.get("ready")),
        )


def _job_end(status: Mapping[str, Any]) -> tuple[JobState, datetime | None, str, str]:
    # Complete and Failed are final; SuccessCriteriaMet and FailureTarget only announce them.
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            return (
                JobState(condition["type"]),
                times.parse(condition.get("lastTransitionTime")) or _EPOCH,
                condition.get("reason") or "",
                condition.get("message") or "",
            )
    return JobState.RUNNING, None, "", ""


@dataclass(frozen=True)
class ContainerView:
    """One container: waiting, running or terminated, with the kubelet's reason.

    seconds: how long one that has ended ran.
    """

    name: str
    state: str = "waiting"
    reason: str = ""
    exit_code: int | None = None
    message: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class PodView:
    """One Pod of a Job of ours. unscheduled: why the scheduler finds no node, else empty."""

    name: str
    namespace: str
    uid: str
    job_uid: str
    model_uid: str
    resource_version: str
    created: datetime
    phase: str = "Pending"
    reason: str = ""
    unscheduled: str = ""
    deleting: bool = False
    containers: tuple[ContainerView, ...] = ()

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> PodView:
        """Read a Pod."""
        metadata = body["metadata"]
        status = body.get("status") or {}
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            job_uid=controller_uid(metadata),
            model_uid=(metadata.get("labels") or {}).get(names.LABEL_MODEL_UID, ""),
            resource_version=metadata.get("resourceVersion") or "",
            created=times.parse(metadata.get("creationTimestamp")) or _EPOCH,
            phase=status.get("phase") or "Pending",
            reason=status.get("reason") or "",
            unscheduled=_unscheduled(status),
            deleting="deletionTimestamp" in metadata,
            containers=tuple(
                _container(container)
                for key in ("initContainerStatuses", "containerStatuses")
                for container in status.get(key) or ()
            ),
        )

    @property
    def may_write(self) -> bool:
        """Whether a container of it may still be running."""
        return self.phase not in ("Succeeded", "Failed")

    @property
    def running(self) -> ContainerView | None:
        """The container that runs."""
        return next((one for one in self.containers if one.state == "running"), None)

    def results(self) -> Iterable[LoadResult]:
        """The well-formed results of its containers, the last container's first."""
        for container in reversed(self.containers):
            if container.state == "terminated" and container.message:
                result = LoadResult.decode(container.message)
                if result is not None:
                    yield result


def controller_uid(metadata: Mapping[str, Any]) -> str:
    """The uid of the owner that controls an object; empty where there is none."""
    owners = metadata.get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _unscheduled(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return condition.get("message") or condition.get("reason") or "no node was found"
    return ""


def _container(status: Mapping[str, Any]) -> ContainerView:
    for state in ("terminated", "running", "waiting"):
        details = (status.get("state") or {}).get(state)
        if details is not None:
            return ContainerView(
                name=status.get("name") or "",
                state=state,
                reason=details.get("reason") or "",
                exit_code=details.get("exitCode"),
                message=details.get("message") or "",
                seconds=_seconds(details),
            )
    return ContainerView(name=status.get("name") or "")


def _seconds(terminated: Mapping[str, Any]) -> float | None:
    started = times.parse(terminated.get("startedAt"))
    finished = times.parse(terminated.get("finishedAt"))
    if started is None or finished is None:
        return None
    return max(0.0, (finished - started).total_seconds())


def _whole(value: object) -> int:
    text = str(value)
    return int(text) if text.isdecimal() and len(text) < 10 else 0


@dataclass(frozen=True)
class ClaimView:
    """A PersistentVolumeClaim, as far as it matters here."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    created: datetime = _EPOCH
    deleting: bool = False

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> ClaimView:
        """Read a claim."""
        metadata = body["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            resource_version=metadata.get("resourceVersion") or "",
            created=times.parse(metadata.get("creationTimestamp")) or _EPOCH,
            deleting="deletionTimestamp" in metadata,
        )


@dataclass(frozen=True)
class Refusal:
    """A Job that the API server did not let us create."""

    message: str
    code: int
    at: datetime
    namespace_terminating: bool = False


class Outcome(StrEnum):
    """How one webhook call ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"
    """The receiver answered 410."""
    UNSIGNED = "unsigned"
    """The signing key could not be read, so nothing was sent."""


@dataclass(frozen=True)
class Delivery:
    """One finished webhook call, not yet noted in the status.

    pause: for how many seconds the receiver wants to be left alone.
    """

    id: str
    outcome: Outcome
    error: str
    at: datetime
    pause: float = 0.0


@dataclass(frozen=True)
class Observed:
    """All that is known of one model's surroundings.

    fresh: Jobs, Pods and claim were read from the API server in this very pass, not from the
    cache. job_warning: the newest Warning Event of a Job that has no Pods. admitted: whether the
    queue lets the model load now; place: its position there, where it does not.
    """

    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    claim: ClaimView | None = None
    progress: Progress | None = None
    job_warning: str = ""
    refusal: Refusal | None = None
    deliveries: tuple[Delivery, ...] = ()
    in_flight: frozenset[str] = frozenset()
    fresh: bool = False
    admitted: bool = True
    place: int = 0

    def of_role(self, role: str) -> tuple[JobView, ...]:
        """The Jobs of one role, the newest attempt last."""
        return tuple(
            sorted((job for job in self.jobs if job.role == role), key=lambda job: job.attempt)
        )

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """A Job's Pods, the newest first."""
        mine = (pod for pod in self.pods if pod.job_uid == job.uid)
        return tuple(sorted(mine, key=lambda pod: (pod.created, pod.name), reverse=True))
