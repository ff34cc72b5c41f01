"""What the rules work with: their input, the step they decide on, and the status a step makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from sd_api import names
from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.reasons import ReadyReason, Reason, WebhookReason
from sd_api.status import (
    Condition,
    ConditionType,
    JobStatus,
    Phase,
    Status,
    StatusArtifact,
    StatusProgress,
    StatusSource,
    WebhookEvent,
    WebhookStatus,
)
from sd_api.wire import Progress
from sd_operator.base import times
from sd_operator.base.settings import Settings
from sd_operator.resources.model import Model
from sd_operator.resources.observed import JobView, Observed
from sd_operator.rules import conditions, outbox
from sd_operator.rules.decision import FinalizerChange, JobPlan
from sd_operator.rules.diagnose import Failure

NOT_YET = frozenset(
    {
        Reason.CLAIM_NOT_FOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.QUOTA_EXCEEDED,
        Reason.UNSCHEDULABLE,
    }
)
"""Reasons of a load that has not begun, and begins by itself once the cause is gone."""


@dataclass(frozen=True)
class Input:
    """All that a rule may look at."""

    model: Model
    observed: Observed
    settings: Settings
    now: datetime

    @property
    def status(self) -> Status:
        """The status as it stands."""
        return self.model.status

    @property
    def deleting(self) -> bool:
        """Whether the resource is being deleted."""
        return self.model.deleted_at is not None

    @property
    def wanted(self) -> str:
        """The loadHash that the spec asks for."""
        return self.model.wanted

    @property
    def claim_name(self) -> str:
        """The claim of this model."""
        return self.model.claim_name or self.settings.claim_name

    @cached_property
    def published(self) -> StatusArtifact | None:
        """What is published and still there: its claim exists, and is not another of that name."""
        artifact, claim = self.status.artifact, self.observed.claim
        if artifact is None or claim is None:
            return None
        return artifact if artifact.claim_uid in (None, claim.uid) else None

    @cached_property
    def jobs(self) -> tuple[JobView, ...]:
        """The Jobs that load what is wanted, the newest attempt last."""
        every = self.observed.of_role(names.ROLE_LOAD)
        return tuple(job for job in every if job.load_hash == self.wanted)

    @property
    def same_load(self) -> bool:
        """Whether the status speaks of the load that the spec asks for."""
        return self.status.load_hash == self.wanted

    @property
    def webhook(self) -> str | None:
        """The URL to call."""
        return self.model.spec.webhook if self.model.spec else None

    @property
    def ready(self) -> Condition | None:
        """The condition Ready."""
        return conditions.find(self.status.conditions, ConditionType.READY)

    @property
    def stalled(self) -> Reason | None:
        """The reason of the condition Stalled, where it is present and known."""
        condition = conditions.find(self.status.conditions, ConditionType.STALLED)
        return Reason.parse(condition.reason) if condition else None

    @property
    def stuck_after(self) -> timedelta:
        """How long a wait may last before it is a failure."""
        return timedelta(seconds=self.settings.stuck_seconds)

    def retry_delay(self, attempt: int) -> timedelta:
        """How long to wait after this attempt: ever longer."""
        seconds = self.settings.retry_first_seconds * 2 ** min(attempt, 20)
        return timedelta(seconds=min(seconds, self.settings.retry_max_seconds))


@dataclass(frozen=True)
class Standing:
    """Where a model stands, as the conditions will say it.

    reason: of Ready where nothing is served, and of Reconciling. keep_stalled: an earlier failure
    of this same load stays said while it is tried again.
    """

    phase: Phase
    reason: ReadyReason | Reason
    message: str
    reconciling: bool = False
    stalled: Failure | None = None
    keep_stalled: bool = False

    @classmethod
    def of(cls, failure: Failure, job_name: str = "", note: str = "") -> Standing:
        """The standing of a failed or stuck load."""
        phase = Phase.PENDING if failure.reason in NOT_YET else Phase.FAILED
        text = failure.text(job_name) + (f" {note}" if note else "")
        return cls(phase, failure.reason, text, stalled=failure)


@dataclass(frozen=True)
class Load:
    """The load that the status speaks of from now on."""

    job: JobStatus
    start_time: datetime
    completion_time: datetime | None = None


@dataclass(frozen=True)
class Step:
    """What one rule decides.

    ended: a Job's outcome is noted for the first time. hold: the status stays as it is for now.
    """

    standing: Standing
    load: Load | None = None
    ended: bool = False
    progress: Progress | None = None
    artifact: StatusArtifact | None = None
    source: StatusSource | None = None
    notify: tuple[WebhookEvent, ...] = ()
    look: bool = False
    hold: bool = False
    wants_turn: bool = False
    delete: tuple[JobView, ...] = ()
    finalizer: FinalizerChange | None = None
    create: JobPlan | None = None
    released: str = ""
    wake_after: float | None = None


Rule = Callable[[Input], Step | None]


def status_after(inp: Input, step: Step, news: outbox.News) -> Status:
    """The status that a step leads to."""
    standing, model = step.standing, inp.model
    artifact = step.artifact or _kept_artifact(inp)
    served = artifact is not None and (step.artifact is not None or inp.published is not None)
    ready_now = served and not inp.deleting
    updates: dict[str, object] = {
        "observed_generation": model.generation,
        "model_id": model.model_id,
        "model_type": model.model_type,
        "phase": Phase.READY if ready_now and not standing.reconciling else standing.phase,
        "reason": None if standing.phase is Phase.READY else standing.reason.value,
        "conditions": _conditions(inp, standing, artifact if ready_now else None, news),
        "progress": StatusProgress.of(step.progress) if step.progress else None,
        "artifact": artifact,
        "source": step.source or (inp.status.source if artifact else None),
        "webhook": WebhookStatus(outbox=list(news.entries)) if news.entries else None,
    }
    if step.load is not None:
        updates |= {
            "load_hash": inp.wanted,
            "job": step.load.job,
            "start_time": times.stamp(step.load.start_time),
            "completion_time": times.stamp(step.load.completion_time)
            if step.load.completion_time
            else None,
        }
    return inp.status.model_copy(update=updates)


def _kept_artifact(inp: Input) -> StatusArtifact | None:
    """What is published stays said while its claim is away, but not on a claim made since."""
    return inp.status.artifact if inp.observed.claim is None else inp.published


def _conditions(
    inp: Input, standing: Standing, served: StatusArtifact | None, news: outbox.News
) -> list[Condition]:
    result = list(inp.status.conditions)

    def put(
        kind: ConditionType,
        true: bool,
        reason: ReadyReason | WebhookReason | Reason,
        message: str,
        generation: int,
    ) -> None:
        nonlocal result
        condition = Condition(
            type=kind,
            status="True" if true else "False",
            reason=reason.value,
            message=message[:TEXT_MAX_LENGTH],
            observed_generation=generation,
            last_transition_time=times.stamp(inp.now),
        )
        result = conditions.put(result, condition)

    generation = inp.model.generation
    if served is not None:
        text = _served_text(inp, standing, served)
        put(ConditionType.READY, True, ReadyReason.LOADED, text, _served_generation(inp, served))
    else:
        put(ConditionType.READY, False, standing.reason, standing.message, generation)
    if standing.reconciling:
        put(ConditionType.RECONCILING, True, standing.reason, standing.message, generation)
    else:
        result = conditions.drop(result, ConditionType.RECONCILING)
    if standing.stalled is not None:
        put(ConditionType.STALLED, True, standing.stalled.reason, standing.message, generation)
    elif not (standing.keep_stalled and inp.same_load and inp.stalled not in NOT_YET):
        result = conditions.drop(result, ConditionType.STALLED)
    if inp.webhook is None:
        return conditions.drop(result, ConditionType.WEBHOOK_DELIVERED)
    if news.reason is not None:
        delivered = news.reason is WebhookReason.DELIVERED
        put(ConditionType.WEBHOOK_DELIVERED, delivered, news.reason, news.message, generation)
    return result


def where(path: str, claim_name: str) -> str:
    """Where a model is published, in words."""
    return f"{path} is published on claim {claim_name}"


def _served_text(inp: Input, standing: Standing, served: StatusArtifact) -> str:
    """Where it is, and what its load had to say: just now, or as the condition has it since."""
    text = where(served.path, served.claim_name)
    noted = standing.message if standing.phase is Phase.READY else ""
    if not noted and inp.ready is not None:
        noted = inp.ready.message
    return noted if noted.startswith(f"{text}. ") else text


def _served_generation(inp: Input, served: StatusArtifact) -> int:
    """The generation that is published; edits outside the loadHash count as published at once."""
    ready = inp.ready
    if served.load_hash != inp.wanted and ready is not None and ready.status == "True":
        return ready.observed_generation or 0
    return inp.model.generation
