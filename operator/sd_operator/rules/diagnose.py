"""Finds why a Job failed or why its container does not start, from Job, Pods and Events. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sd_api import names
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import LoadResult
from sd_operator.base.errors import is_quota_message
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.observed import (
    POD_WARNING_SECONDS,
    WARNING_LOOK_SECONDS,
    JobView,
    Observed,
    PodView,
)
from sd_operator.resources.warning_event import WarningEvent
from sd_operator.rules import conditions

NOT_STARTED = frozenset(
    {
        Reason.CLAIM_NOT_FOUND,
        Reason.CLAIM_NOT_ALLOWED,
        Reason.CLAIM_NOT_BOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_NOT_STARTING,
        Reason.PRIORITY_CLASS_NOT_ALLOWED,
        Reason.QUOTA_EXCEEDED,
        Reason.UNSCHEDULABLE,
        Reason.VOLUME_NOT_MOUNTED,
    }
)
"""Reasons why a load cannot start; it starts by itself once the cause is gone."""
NOT_OF_A_LOAD = NOT_STARTED | {Reason.ARTIFACT_MISSING}
"""Reasons of the condition Stalled that are not about a failed load."""
_WARNING_VALID = timedelta(minutes=10)
"""How long a Warning about a Pod or its PVC counts after it last occurred. While the cause lasts,
Kubernetes repeats the Warning, the kubelet at least every 5 minutes. No Event reports that the
cause is gone."""
_VOLUME_WARNINGS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_WAITS_FOR_VOLUME = re.compile(
    r"unbound immediate|persistent volumes? to bind|non-existent persistentvolume|binding volumes"
)
"""What the scheduler writes about a Pod that gets no node because its PVC has no volume."""
_STUCK_BEFORE_DEADLINE = frozenset(
    {
        Reason.CLAIM_NOT_BOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_NOT_STARTING,
        Reason.QUOTA_EXCEEDED,
        Reason.UNSCHEDULABLE,
        Reason.VOLUME_NOT_MOUNTED,
    }
)
"""If a Job was stuck for such a reason and exceeds its deadline, its failure keeps the reason."""
CAUSE_MAX_LENGTH = 700
"""Limit of a cause. It leaves room in a condition's message for the longest remedy and a note."""
_STARTING_REASONS = frozenset({"", "PodInitializing", "ContainerCreating"})
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
        """Return what happened, what the user can do, and the note."""
        remedy = self.reason.remedy_for(job_name)
        tail = f"{remedy} {note}" if note else remedy
        return conditions.fit(f"{clean(self.message).rstrip('.')}.", tail)


@dataclass(frozen=True)
class StartDelay:
    """Why no container of a Job has started yet."""

    message: str
    reason: Reason | None = None
    """The reason of the failure if the delay lasts too long; None if it never becomes a failure."""
    since: datetime | None = None
    """When the delay began; None makes it a failure at once."""
    is_normal: bool = False
    """True if no cause of a delay is known: the Pod is starting as usual."""

    def failure(self, now: datetime, limit: timedelta) -> Failure | None:
        """Return the failure if the delay has lasted for `limit`; otherwise None."""
        if self.reason is None or (self.since is not None and now - self.since < limit):
            return None
        return Failure(self.reason, self.message)


def clean(text: str) -> str:
    """Make text from outside fit for a status: one printable line of bounded length."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * CAUSE_MAX_LENGTH])
    return conditions.fit(" ".join(printable.split()), limit=CAUSE_MAX_LENGTH)


def newest_result(pods: Sequence[PodView], outcome: str) -> LoadResult | None:
    """Return the newest result with this outcome; pods: the newest first."""
    for pod in pods:
        for result in pod.results():
            if result.outcome == outcome:
                return result
    return None


def load_result(pods: Sequence[PodView]) -> LoadResult | None:
    """Return the newest result of a load that succeeded; None if it has no artifact."""
    result = newest_result(pods, "loaded")
    return result if result is not None and result.artifact is not None else None


def job_failure(job: JobView, pods: Sequence[PodView], before: Reason | None) -> Failure:
    """Return why a Job failed; before: the reason of Stalled before the Job failed, if any."""
    if job.failure == "DeadlineExceeded":
        if before in _STUCK_BEFORE_DEADLINE:
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


def observed_delay(observed: Observed, job: JobView, now: datetime) -> StartDelay:
    """Return why no container of a Job runs, by its Pods, its PVC and the Warnings about them."""
    pods = observed.pods_of(job)
    delay = start_delay(job, pods, observed.job_warning)
    if not pods:
        return delay
    claim = observed.unbound_claim(pods[0])
    if claim is not None:
        return _unbound(pods[0], claim, observed.claim_warning, now) or delay
    return (_warned(pods[0], observed.pod_warning, now) or delay) if delay.is_normal else delay


def start_delay(job: JobView, pods: Sequence[PodView], job_warning: str) -> StartDelay:
    """Return why no container of a Job runs; job_warning: the message of its newest Warning."""
    if not pods:
        if is_quota_message(job_warning):
            return StartDelay(job_warning, Reason.QUOTA_EXCEEDED)
        return StartDelay(job_warning) if job_warning else _starting(job)
    pod = pods[0]
    if not pod.may_write:
        return StartDelay(f"{_pod_failure(pod)}{next_step(job, pods)}")
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
    for container in waiting:
        if container.reason not in _STARTING_REASONS:
            detail = f" ({container.message})" if container.message else ""
            why = f"Pod {pod.name} is starting: {container.reason}{detail}"
            return StartDelay(why, Reason.POD_NOT_STARTING, pod.created)
    return _starting(job)


def _unbound(
    pod: PodView, claim: ClaimView, warning: WarningEvent | None, now: datetime
) -> StartDelay | None:
    """Return the delay that an unbound PVC causes; None if the Pod waits for something else."""
    if warning is not None and now - warning.at > _WARNING_VALID:
        warning = None
    if pod.unscheduled:
        if not _WAITS_FOR_VOLUME.search(pod.unscheduled):
            return None
    elif warning is None and not claim.lost:
        # A class with the mode WaitForFirstConsumer makes a volume only for a Pod.
        message = f"PersistentVolumeClaim {claim.name} is not bound yet; it waits for Pod"
        return StartDelay(f"{message} {pod.name}", is_normal=True)
    return StartDelay(claim.why_without_volume(warning), Reason.CLAIM_NOT_BOUND, pod.created)


def _warned(pod: PodView, warning: WarningEvent | None, now: datetime) -> StartDelay | None:
    """Return the delay of a Pod that has a node, by a Warning about the Pod.

    None if there is no Warning, or if the Warning is too early or too old to count.
    """
    if warning is None or pod.scheduled is None or pod_warning_due(pod, now) > 0:
        return None
    if warning.at < pod.scheduled or now - warning.at > _WARNING_VALID:
        return None
    if warning.reason in _VOLUME_WARNINGS:
        why = f"Pod {pod.name} cannot mount its volumes: {warning.message}"
        return StartDelay(why, Reason.VOLUME_NOT_MOUNTED, pod.scheduled)
    why = f"Pod {pod.name} cannot start ({warning.reason}): {warning.message}"
    return StartDelay(why, Reason.POD_NOT_STARTING, pod.scheduled)


def pod_warning_due(pod: PodView, now: datetime) -> float:
    """Return in how many seconds the Warnings of a Pod begin to count; 0 or less: they count."""
    began = pod.scheduled or now
    return POD_WARNING_SECONDS - (now - began).total_seconds()


def next_warning(pods: Sequence[PodView], now: datetime) -> float:
    """Return in how many seconds to read the Warnings of a Job's newest Pod again.

    The operator does not watch Events, so a Warning does not start a pass.
    """
    due = pod_warning_due(pods[0], now) if pods else 0.0
    return max(1.0, due) if due > 0 else WARNING_LOOK_SECONDS


def _starting(job: JobView) -> StartDelay:
    # One text for everything normal: each change of it would cost a status write.
    return StartDelay(f"Job {job.name} was created; its Pod is starting", is_normal=True)


def next_step(job: JobView, pods: Sequence[PodView]) -> str:
    """Return the end of a sentence about a Job's newest Pod, which has ended: what comes next."""
    result = newest_result(pods[:1], "failed")
    reason = result.reason if result is not None else None
    final = reason is not None and reason.exit_code is ExitCode.PERMANENT
    return f"; Job {job.name} {'is ending' if final else 'is about to create another Pod'}"


def newest_failure(pods: Sequence[PodView]) -> Failure | None:
    """Return the failure of the newest Pod that failed; None if no Pod failed."""
    for pod in pods:
        if pod.phase != "Failed":
            continue
        result, crash = newest_result([pod], "failed"), _crash(pod)
        reason = (result and result.reason) or (crash and crash.reason) or Reason.LOADER_CRASHED
        return Failure(reason, _pod_failure(pod))
    return None


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
    """Whether the download is over: the fetch container succeeded, or a Pod of the Job is ready."""
    fetched = any(
        container.name == names.CONTAINER_FETCH and container.exit_code == 0
        for container in (pods[0].containers if pods else ())
    )
    return fetched or job.ready > 0
