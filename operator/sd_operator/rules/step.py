"""The step that a rule returns. `decide` makes status, Events and webhook calls from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from sd_api.reasons import ReadyReason, Reason
from sd_api.status import JobStatus, Phase, StatusArtifact, StatusSource
from sd_api.wire import Progress
from sd_operator.rules.decision import AddFinalizer, JobAction, Refresh, Wait
from sd_operator.rules.diagnose import NOT_STARTED, Failure
from sd_operator.rules.input import Input


@dataclass(frozen=True)
class KeepStalled:
    """Keep the condition Stalled if it is about an earlier attempt of this load, else remove it."""


@dataclass(frozen=True)
class Report:
    """What the status reports about a model."""

    phase: Phase
    reason: ReadyReason | Reason
    """The reason of the condition Reconciling, and of Ready while it is False."""
    message: str
    """The message of these conditions, and of Stalled if `stalled` is a Failure."""
    reconciling: bool = False
    """Whether a load is under way: the condition Reconciling."""
    stalled: Failure | KeepStalled | None = None
    """The condition Stalled: a Failure sets it, KeepStalled keeps it, and None removes it."""
    last_failure: Failure | None = None
    """How an earlier Pod of the running Job failed; it stays in the status while the Job runs."""
    delay: Reason | None = None
    """Why the start of a Pod is delayed, while the delay is too short to set Stalled."""

    generation: int = 0
    """The generation of the spec that a failed Job loaded. 0: the current generation."""

    @classmethod
    def of_failure(cls, failure: Failure, job_name: str = "", note: str = "") -> Report:
        """Report a load that failed or cannot start; note: a sentence after the remedy."""
        phase = Phase.PENDING if failure.reason in NOT_STARTED else Phase.FAILED
        text = failure.text(job_name, note)
        return cls(phase, failure.reason, text, stalled=failure)


@dataclass(frozen=True)
class LoadQueued:
    """A load whose Job was created and waits for Kueue; it has not begun."""

    job: JobStatus


@dataclass(frozen=True)
class LoadRunning:
    """A load whose Job has not ended."""

    job: JobStatus
    start_time: datetime
    progress: Progress | None = None


@dataclass(frozen=True)
class LoadFailed:
    """A load whose Job failed, or succeeded without a result."""

    job: JobStatus
    start_time: datetime
    completion_time: datetime
    failure: Failure


@dataclass(frozen=True)
class LoadSucceeded:
    """A load whose result is published."""

    job: JobStatus
    start_time: datetime
    completion_time: datetime
    artifact: StatusArtifact
    source: StatusSource


Load: TypeAlias = LoadQueued | LoadRunning | LoadFailed | LoadSucceeded


@dataclass(frozen=True)
class Proceed:
    """Report on the model, and change its Jobs where needed."""

    report: Report
    load: Load | None = None
    """The load that the status describes from now on; None: the same load as before."""
    job: JobAction | None = None
    wake_after: float | None = None
    """Seconds until the next pass, if no event comes earlier; None means at the resync."""


@dataclass(frozen=True)
class Finish:
    """Release the deleted resource: the clean-up is complete or not needed."""

    why: str


Step: TypeAlias = Refresh | Wait | AddFinalizer | Finish | Proceed

Rule: TypeAlias = Callable[[Input], Step | None]
"""A rule returns its step, or None if it does not apply."""
