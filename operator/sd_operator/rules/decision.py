"""What one pass over a model has to do, as data. The rules make it; `execute` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sd_api.load import LoadRequest, RemoveRequest
from sd_api.reasons import EventReason
from sd_api.spec import JobOverrides
from sd_api.status import OutboxEntry, Status
from sd_operator.resources.observed import Delivery, JobView


class EventType(StrEnum):
    """Kubernetes' two kinds of Events."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True)
class EventPlan:
    """One Event to emit."""

    type: EventType
    reason: EventReason
    message: str


@dataclass(frozen=True)
class JobPlan:
    """One Job to create; `jobs` makes its manifest. overrides: what the user wants otherwise."""

    namespace: str
    name: str
    model_name: str
    model_uid: str
    claim_name: str
    attempt: int
    request: LoadRequest | RemoveRequest
    overrides: JobOverrides | None = None
    credentials_secret: str | None = None


@dataclass(frozen=True)
class Call:
    """One webhook call that is due."""

    entry: OutboxEntry
    url: str
    secret_name: str | None = None
    secret_key: str | None = None


class FinalizerChange(StrEnum):
    """What to do with our finalizer."""

    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True)
class Ended:
    """A load that ended, for the metrics. stages: seconds in all, and of each container."""

    outcome: str
    reason: str
    stages: tuple[tuple[str, float], ...]
    source_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """One pass, in the order of its execution: delete, finalizer, create, status, events, calls.

    rule: the sentence that decided, for the log. look: read Jobs, Pods and claim anew and plan
    again before anything else. wants_turn: the model waits in the queue, or uses its turn now.
    noted: the finished webhook calls that the status tells of from now on. wake_after: seconds
    until the next pass, unless woken before; None means the resync.
    """

    rule: str
    status: Status
    look: bool = False
    wants_turn: bool = False
    delete: tuple[JobView, ...] = ()
    finalizer: FinalizerChange | None = None
    create: JobPlan | None = None
    events: tuple[EventPlan, ...] = ()
    calls: tuple[Call, ...] = ()
    ended: Ended | None = None
    noted: tuple[Delivery, ...] = ()
    wake_after: float | None = None
