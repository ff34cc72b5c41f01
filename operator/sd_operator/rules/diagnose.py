"""Why a Job failed, or why its container does not start: pure readings of Job and Pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sd_api import names
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import LoadResult
from sd_operator.base.errors import is_quota_message
from sd_operator.resources.observed import JobView, PodView
from sd_operator.rules import conditions

NOT_STARTED = frozenset(
    {
        Reason.CLAIM_NOT_FOUND,
        Reason.CLAIM_NOT_ALLOWED,
        Reason.IMAGE_PULL_FAILED,
        Reason.PRIORITY_CLASS_NOT_ALLOWED,
        Reason.QUOTA_EXCEEDED,
        Reason.UNSCHEDULABLE,
    }
)
"""Reasons why a load cannot start; it starts by itself once the cause is gone."""
NOT_OF_A_LOAD = NOT_STARTED | {Reason.ARTIFACT_MISSING}
"""Reasons that do not describe a load that failed."""
CAUSE_MAX_LENGTH = 700
"""Leaves room in a condition's message for the longest remedy and a note."""
_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)


@dataclass(frozen=True)
class Failure:
    """Why a load failed or is stuck."""

    reason: Reason
    message: str
    """What happened, for people; it may come from outside and have any length."""

    def text(self, job_name: str = "", note: str = "") -> str:
        """Return what happened and what to do, then the note."""
        remedy = self.reason.remedy_for(job_name)
        tail = f"{remedy} {note}" if note else remedy
        return conditions.fit(f"{clean(self.message).rstrip('.')}.", tail)


@dataclass(frozen=True)
class StartDelay:
    """Why no container of a Job has started yet."""

    message: str
    reason: Reason | None = None
    """The reason of the failure if the delay lasts too long; None if it is harmless."""
    since: datetime | None = None
    """When the delay began; None makes it a failure at once."""

    def failure(self, now: datetime, limit: timedelta) -> Failure | None:
        """Return the failure, if the delay has lasted too long."""
        if self.reason is None or (self.since is not None and now - self.since < limit):
            return None
        return Failure(self.reason, self.message)


def clean(text: str) -> str:
    """Make text from outside fit for a status: one printable line of bounded length."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * CAUSE_MAX_LENGTH])
    return conditions.fit(" ".join(printable.split()), limit=CAUSE_MAX_LENGTH)


def newest_result(pods: Sequence[PodView], outcome: str) -> LoadResult | None:
    """Return the newest Pod's result with this outcome."""
    for pod in pods:
        for result in pod.results():
            if result.outcome == outcome:
                return result
    return None


def load_result(pods: Sequence[PodView]) -> LoadResult | None:
    """Return the result of a load that succeeded, if it is complete."""
    result = newest_result(pods, "loaded")
    return result if result is not None and result.artifact is not None else None


def job_failure(job: JobView, pods: Sequence[PodView], before: Reason | None) -> Failure:
    """Return why a Job failed; before: its reason if it was stuck earlier."""
    if job.failure == "DeadlineExceeded":
        if before in (Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.QUOTA_EXCEEDED):
            return Failure(before, f"Job {job.name} did not start before its deadline")
        return Failure(Reason.DEADLINE_EXCEEDED, f"Job {job.name} exceeded its deadline")
    result = newest_result(pods, "failed")
    if result is not None and result.reason is not None:
        return Failure(result.reason, result.message or "the loader reported no details")
    for pod in pods:
        crash = _crash(pod)
        if crash is not None:
            return crash
    if job.failure == "BackoffLimitExceeded":
        return Failure(Reason.BACKOFF_LIMIT_EXCEEDED, f"every Pod of Job {job.name} failed")
    return Failure(Reason.LOADER_CRASHED, f"Job {job.name} failed: {job.detail or job.failure}")


def _crash(pod: PodView) -> Failure | None:
    for container in reversed(pod.containers):
        if container.state != "terminated" or container.exit_code in (0, None):
            continue
        if container.reason == "OOMKilled":
            return Failure(
                Reason.OUT_OF_MEMORY,
                f"container {container.name} of Pod {pod.name} ran out of memory",
            )
        return Failure(
            Reason.LOADER_CRASHED,
            f"container {container.name} of Pod {pod.name} ended with exit code"
            f" {container.exit_code} ({container.reason or 'Error'}) and reported no result",
        )
    return None


def start_delay(job: JobView, pods: Sequence[PodView], job_warning: str) -> StartDelay:
    """Return why no container of a Job runs; job_warning: its newest Warning Event."""
    if not pods:
        if is_quota_message(job_warning):
            return StartDelay(job_warning, Reason.QUOTA_EXCEEDED)
        return StartDelay(job_warning) if job_warning else _starting(job)
    pod = pods[0]
    if not pod.may_write:
        result = newest_result([pod], "failed")
        reason = result.reason if result is not None else None
        final = reason is not None and reason.exit_code is ExitCode.PERMANENT
        then = "is ending" if final else "is about to create another Pod"
        return StartDelay(f"{_pod_failure(pod)}; Job {job.name} {then}")
    if pod.unscheduled:
        why = f"Pod {pod.name} is waiting for a node: {pod.unscheduled}"
        if "persistentvolumeclaim" in pod.unscheduled and "not found" in pod.unscheduled:
            return StartDelay(why, Reason.CLAIM_NOT_FOUND)
        return StartDelay(why, Reason.UNSCHEDULABLE, pod.created)
    waiting = [container for container in pod.containers if container.state == "waiting"]
    for container in waiting:
        if container.reason in _IMAGE_REASONS:
            detail = container.message or container.reason
            why = f"Pod {pod.name} is waiting for its image: {detail}"
            return StartDelay(why, Reason.IMAGE_PULL_FAILED, pod.created)
    reasons = {container.reason for container in waiting if container.reason}
    reasons -= {"PodInitializing", "ContainerCreating"}
    if reasons:
        return StartDelay(f"Pod {pod.name} is starting: {', '.join(sorted(reasons))}")
    return _starting(job)


def _starting(job: JobView) -> StartDelay:
    # One text for everything normal: each change of it would cost a status write.
    return StartDelay(f"Job {job.name} was created; its Pod is starting")


def _pod_failure(pod: PodView) -> str:
    """Return how a Pod ended, in a few words."""
    result = newest_result([pod], "failed")
    if result is not None and result.reason is not None:
        return f"Pod {pod.name} failed ({result.reason}: {result.message.rstrip('.')})"
    crash = _crash(pod)
    if crash is not None:
        return crash.message
    return f"Pod {pod.name} ended ({pod.reason or pod.phase})"


def convert_has_begun(job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether the download is over: its container succeeded, or the Job counts a ready Pod."""
    fetched = any(
        container.name == names.CONTAINER_FETCH and container.exit_code == 0
        for container in (pods[0].containers if pods else ())
    )
    return fetched or job.ready > 0
