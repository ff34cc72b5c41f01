"""Typed views of a model's Jobs and Pods, and everything else that is observed about the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sd_api import names
from sd_api.wire import LoadResult, Progress
from sd_operator.base import times
from sd_operator.base.errors import is_quota_message
from sd_operator.resources.check_finding import CheckFinding
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.warning_event import WarningEvent

WARNING_LOOK_SECONDS = 60.0
"""How often the Events of a Job without Pods, or of a Pod that does not start, are listed."""
POD_WARNING_SECONDS = 30.0
"""How long a Pod's Warnings are ignored after it got a node: a mount may need a second attempt."""


class JobState(StrEnum):
    """Whether a Job has ended, and how."""

    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class JobView:
    """A Job of the operator."""

    name: str
    namespace: str
    uid: str
    model_uid: str
    """The uid of the model that the Job works for, by its label; anyone can write it."""
    role: str
    """names.ROLE_LOAD or names.ROLE_REMOVE."""
    load_hash: str
    """The version that the Job loads; empty for a clean-up Job."""
    attempt: int
    """The number of the attempt, from 0: among the loads of one loadHash, or among clean-ups."""
    resource_version: str
    created: datetime
    state: JobState = JobState.RUNNING
    ended: datetime | None = None
    failure: str = ""
    """The reason of the condition Complete or Failed; empty while the Job runs."""
    detail: str = ""
    """The message of the condition whose reason is `failure`."""
    deleting: bool = False
    suspended: bool = False
    """Whether spec.suspend is true, as Kueue sets it until it admits the Job."""
    started: datetime | None = None
    """When the Job was last allowed to run Pods."""
    ready: int = 0
    """How many of its Pods are ready."""
    owner_uid: str = ""
    """The uid of the owner that controls the Job; anyone can write it."""
    claim_uid: str = ""
    """The uid of the PVC that a load Job was created for."""
    generation: int = 0
    """The generation of the spec that a load Job was made from; 0 if it is not known."""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> JobView:
        """Read a Job from the API server's JSON."""
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
            created=times.parse(metadata.get("creationTimestamp")) or times.EPOCH,
            state=state,
            ended=ended,
            failure=failure,
            detail=detail,
            deleting="deletionTimestamp" in metadata,
            suspended=bool((body.get("spec") or {}).get("suspend")),
            started=times.parse(status.get("startTime")),
            ready=_whole(status.get("ready")),
            owner_uid=controller_uid(metadata),
            claim_uid=annotations.get(names.ANNOTATION_CLAIM_UID, ""),
            generation=_whole(annotations.get(names.ANNOTATION_GENERATION)),
        )


def _job_end(status: Mapping[str, Any]) -> tuple[JobState, datetime | None, str, str]:
    # Complete and Failed are final; SuccessCriteriaMet and FailureTarget only announce them.
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            return (
                JobState(condition["type"]),
                times.parse(condition.get("lastTransitionTime")) or times.EPOCH,
                condition.get("reason") or "",
                condition.get("message") or "",
            )
    return JobState.RUNNING, None, "", ""


@dataclass(frozen=True)
class ContainerView:
    """One container of a Pod."""

    name: str
    state: str = "waiting"
    """waiting, running or terminated."""
    reason: str = ""
    """The kubelet's reason for this state, such as OOMKilled."""
    exit_code: int | None = None
    """None while the container has not ended."""
    message: str = ""
    """The kubelet's explanation of why the container waits."""
    result: LoadResult | None = None
    """The loader's result; None if the termination message is not a valid result."""
    seconds: float | None = None
    """How long the container ran, if it has ended."""


@dataclass(frozen=True)
class PodView:
    """A Pod of one of the operator's Jobs."""

    name: str
    namespace: str
    uid: str
    job_uid: str
    """The uid of the Job that controls the Pod."""
    model_uid: str
    resource_version: str
    created: datetime
    phase: str = "Pending"
    reason: str = ""
    """Why the Pod failed as a whole, such as Evicted."""
    unscheduled: str = ""
    """Why the scheduler finds no node; empty if it found one, or has not tried."""
    scheduled: datetime | None = None
    """When the scheduler found a node; None if it has not yet."""
    deleting: bool = False
    containers: tuple[ContainerView, ...] = ()
    """The init containers first."""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> PodView:
        """Read a Pod from the API server's JSON."""
        metadata = body["metadata"]
        status = body.get("status") or {}
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            job_uid=controller_uid(metadata),
            model_uid=(metadata.get("labels") or {}).get(names.LABEL_MODEL_UID, ""),
            resource_version=metadata.get("resourceVersion") or "",
            created=times.parse(metadata.get("creationTimestamp")) or times.EPOCH,
            phase=status.get("phase") or "Pending",
            reason=status.get("reason") or "",
            unscheduled=_unscheduled(status),
            scheduled=_scheduled(status),
            deleting="deletionTimestamp" in metadata,
            containers=tuple(
                _container(container)
                for key in ("initContainerStatuses", "containerStatuses")
                for container in status.get(key) or ()
            ),
        )

    @property
    def may_write(self) -> bool:
        """Whether one of its containers may still be running."""
        return self.phase not in ("Succeeded", "Failed")

    @property
    def running(self) -> ContainerView | None:
        """The running container; None if no container runs."""
        return next((c for c in self.containers if c.state == "running"), None)

    def results(self) -> Iterable[LoadResult]:
        """The results of the containers, the last container's first."""
        for container in reversed(self.containers):
            if container.result is not None:
                yield container.result


def controller_uid(metadata: Mapping[str, Any]) -> str:
    """Return the uid of the owner that controls an object; empty if it has none."""
    owners = metadata.get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _unscheduled(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return condition.get("message") or condition.get("reason") or "no node was found"
    return ""


def _scheduled(status: Mapping[str, Any]) -> datetime | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "True":
            return times.parse(condition.get("lastTransitionTime"))
    return None


def _container(status: Mapping[str, Any]) -> ContainerView:
    for state in ("terminated", "running", "waiting"):
        details = (status.get("state") or {}).get(state)
        if details is not None:
            message = details.get("message") or ""
            ended = state == "terminated"
            return ContainerView(
                name=status.get("name") or "",
                state=state,
                reason=details.get("reason") or "",
                exit_code=details.get("exitCode"),
                message="" if ended else message,
                result=LoadResult.decode(message) if ended else None,
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
class Rejection:
    """A Job that could not be created, usually because the API server rejected it."""

    message: str
    """Why, usually in the API server's words."""
    code: int
    """The HTTP status; 0 if the operator sent no request."""
    at: datetime
    namespace_terminating: bool = False
    """Whether the reason is that the namespace is being deleted."""
    attempt: int | None = None
    """The attempt whose Job name belongs to another Job that is being deleted; otherwise None."""

    @property
    def quota_exceeded(self) -> bool:
        """Whether the reason is a ResourceQuota."""
        return is_quota_message(self.message)


class Outcome(StrEnum):
    """How a webhook call ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    GONE = "gone"
    """The receiver answered 410."""
    UNSIGNED = "unsigned"
    """The signing key could not be read, so nothing was sent."""


@dataclass(frozen=True)
class Delivery:
    """A finished webhook call."""

    id: str
    """The webhook-id of the call."""
    outcome: Outcome
    error: str
    at: datetime
    pause: float = 0.0
    """For how many seconds the receiver asked not to be called."""


@dataclass(frozen=True)
class Observed:
    """Everything that is observed about a model, besides its own resource."""

    load_job: JobView | None = None
    """The model's load Job: the one whose uid is in status.job."""
    cleanup_job: JobView | None = None
    """The model's clean-up Job: the one whose uid is in status.cleanupJob."""
    unrecorded: tuple[JobView, ...] = ()
    """Running load Jobs with the owner and name of the model's Jobs, but not the uid in status.job.

    Either the operator was interrupted before it recorded the uid, or somebody else created the
    Job. The result of such a Job is ignored unless the operator takes the Job over. A Job whose
    load is not wanted is deleted. This is safe even if somebody else created the Job: the model is
    its owner, so the garbage collector would delete it together with the model anyway.
    """
    other_cleanups: tuple[JobView, ...] = ()
    """Clean-up Jobs with the name of the model's clean-up Jobs, but not the recorded uid.

    They are earlier attempts, and perhaps one whose uid could not be recorded. They are deleted
    when the model is released, because nothing else deletes a Job whose Pod hangs.
    """
    pods: tuple[PodView, ...] = ()
    """The Pods of the load Job and of the clean-up Job."""
    claim: ClaimView | None = None
    """The model's PVC; None if it does not exist."""
    finding: CheckFinding | None = None
    """The finding of the checks about a version of the model, perhaps an earlier one."""
    namespace_ends: bool = False
    """Whether the namespace is being deleted and the operator's rights in it are gone already.

    Nothing else can be observed then.
    """
    progress: Progress | None = None
    """The last progress that the running container logged."""
    job_warning: str = ""
    """The message of the newest Warning Event of a Job without Pods; empty if none is known."""
    pod_warning: WarningEvent | None = None
    """The newest Warning Event of a Pod that has a node, but no running container."""
    claim_warning: WarningEvent | None = None
    """The newest Warning Event about the binding of the PVC, while a Pod waits for the volume."""
    rejection: Rejection | None = None
    """The last rejection of a Job; None if the spec has changed or a Job was created since."""
    deliveries: tuple[Delivery, ...] = ()
    """Finished webhook calls that are not recorded in the status yet."""
    in_flight: frozenset[str] = frozenset()
    """The webhook-ids of the calls under way."""
    fresh: bool = False
    """Whether Jobs, Pods and PVC were read from the API server in this pass."""
    admitted: bool = True
    """Whether the queue admits a load of the model now."""
    position: int = 0
    """The rounded position in the queue that users see; 0 if the model has none."""

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """Return the Job's Pods, the newest first."""
        pods = (pod for pod in self.pods if pod.job_uid == job.uid)
        return tuple(sorted(pods, key=lambda pod: (pod.created, pod.name), reverse=True))

    def unbound_claim(self, pod: PodView) -> ClaimView | None:
        """Return the PVC if it has no volume and the Pod has no node: the Pod may wait for it."""
        if self.claim is None or self.claim.has_volume or not pod.may_write:
            return None
        return self.claim if pod.scheduled is None else None
