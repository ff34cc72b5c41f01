"""What one pass over a model decides, as data. The rules decide it; the controller carries it out.

A decision is exactly one of `Refresh`, `Wait`, `AddFinalizer`, `Release` and `Act`, so outcomes
that exclude each other cannot be combined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from sd_api.default_credentials import DefaultSecret
from sd_api.load import LoadRequest, RemoveRequest
from sd_api.reasons import EventReason
from sd_api.spec import JobOverrides
from sd_api.status import OutboxEntry, Status
from sd_operator.resources.observed import Delivery, JobView


class EventType(StrEnum):
    """The two types of Kubernetes Events."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True)
class EventPlan:
    """An Event to emit."""

    type: EventType
    reason: EventReason
    message: str


@dataclass(frozen=True)
class JobPlan:
    """A Job to create; `manifests.build` makes its manifest."""

    namespace: str
    name: str
    model_name: str
    model_uid: str
    claim_name: str
    attempt: int
    """The number of the attempt, from 0: among the loads of one loadHash, or among clean-ups."""
    request: LoadRequest | RemoveRequest
    """The request that the Job's containers get as an argument."""
    claim_uid: str = ""
    """The uid of the PVC that a load is published on; empty for a clean-up."""
    generation: int = 0
    """The generation of the spec that a load is made from; 0 for a clean-up."""
    overrides: JobOverrides | None = None
    """The settings of spec.job, if the administrator allows them."""
    credentials_secret: str | None = None
    """The Secret for the token of the source that the model names; None if it names none."""
    default_secrets: Mapping[str, DefaultSecret] = field(default_factory=dict)
    """The administrator's Secrets with tokens for hosts that the request names."""


@dataclass(frozen=True)
class WebhookCall:
    """A webhook call that is due."""

    entry: OutboxEntry
    url: str
    secret_name: str | None = None
    """The Secret with the signing key; None means the operator's own key."""
    secret_key: str | None = None


@dataclass(frozen=True)
class LoadOutcome:
    """A load that ended in this pass, for the metrics."""

    outcome: str
    """loaded or failed."""
    reason: str
    """The reason of a failure; empty for a success."""
    stages: tuple[tuple[str, float], ...]
    """Pairs of stage and seconds: `total`, then each container that succeeded."""
    source_bytes: int = 0


@dataclass(frozen=True)
class CreateJob:
    """Create a Job."""

    job: JobPlan


@dataclass(frozen=True)
class DeleteJobs:
    """Delete Jobs, then decide again."""

    jobs: tuple[JobView, ...]


@dataclass(frozen=True)
class Enqueue:
    """Put the model into the queue of loads, or keep it there."""


JobAction: TypeAlias = CreateJob | DeleteJobs | Enqueue


@dataclass(frozen=True)
class Refresh:
    """Read the model's Jobs, Pods and PVC from the API server, then decide again.

    A rule decides this if a stale cache could make its decision wrong. No rule decides it if the
    objects were just read.
    """

    why: str


@dataclass(frozen=True)
class Wait:
    """Change nothing, not even the status."""

    why: str
    seconds: float | None = None
    """When to decide again, if no event comes earlier; None means at the resync."""


@dataclass(frozen=True)
class AddFinalizer:
    """Add our finalizer, then decide again."""

    why: str


@dataclass(frozen=True)
class Release:
    """Remove our finalizer, then delete the clean-up Jobs: their Pods block a deletion of the PVC.

    The resource is about to be deleted, so its status is not written.
    """

    why: str
    jobs: tuple[JobView, ...] = ()
    """The clean-up Jobs of the model that are not being deleted already."""
    events: tuple[EventPlan, ...] = ()
    calls: tuple[WebhookCall, ...] = ()


@dataclass(frozen=True)
class Act:
    """Change Jobs where needed, write the status, emit Events and call webhooks, in this order."""

    why: str
    status: Status
    """The status to write; nothing is written if it equals the present one."""
    job: JobAction | None = None
    events: tuple[EventPlan, ...] = ()
    calls: tuple[WebhookCall, ...] = ()
    recorded: tuple[Delivery, ...] = ()
    """The finished webhook calls whose outcomes are in the new status."""
    ended: LoadOutcome | None = None
    wake_after: float | None = None
    """Seconds until the next pass, if no event comes earlier; None means at the resync."""


Decision: TypeAlias = Refresh | Wait | AddFinalizer | Release | Act


@dataclass(frozen=True)
class Decided:
    """A decision and the rule that made it."""

    rule: str
    decision: Decision

    @property
    def uses_admission(self) -> bool:
        """Whether the model waits in the queue, or was admitted and is about to start a load."""
        match self.decision:
            case AddFinalizer() | Act(job=Enqueue() | CreateJob(JobPlan(request=LoadRequest()))):
                return True
            case _:
                return False

    def __str__(self) -> str:
        """Return rule and decision in one line. Equal decisions of two passes give equal lines."""
        why = self.decision.why
        match self.decision:
            case Refresh():
                what = f"read its objects again: {why}"
            case AddFinalizer():
                what = f"add the finalizer: {why}"
            case Release():
                what = f"remove the finalizer: {why}"
            case Act(job=CreateJob(job)):
                what = f"create Job {job.name}: {why}"
            case Act(job=DeleteJobs(jobs)):
                what = f"delete Job {', '.join(job.name for job in jobs)}: {why}"
            case _:
                what = why
        return f"{self.rule}: {what}"
