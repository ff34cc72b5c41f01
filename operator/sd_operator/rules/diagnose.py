"""Why a Job failed, or why it does not get going: pure readings of Job and Pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sd_api import names
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import LoadResult
from sd_operator.resources.observed import JobView, PodView

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
MESSAGE_MAX_LENGTH = 700


@dataclass(frozen=True)
class Failure:
    """A reason of the enum and what happened, in words fit for people."""

    reason: Reason
    message: str

    def text(self, job_name: str = "") -> str:
        """What happened and what to do."""
        return f"{clean(self.message).rstrip('.')}. {self.reason.remedy_for(job_name)}"


@dataclass(frozen=True)
class Wait:
    """Why no container runs yet. reason: what it is called once it has lasted too long."""

    message: str
    reason: Reason | None = None
    since: datetime | None = None

    def stuck(self, now: datetime, limit: timedelta) -> Failure | None:
        """The failure that this wait has become."""
        if self.reason is None or (self.since is not None and now - self.since < limit):
            return None
        return Failure(self.reason, self.message)


def clean(text: str) -> str:
    """Text from outside, fit for a status: one line, printable, bounded."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * MESSAGE_MAX_LENGTH])
    line = " ".join(printable.split())
    return line if len(line) <= MESSAGE_MAX_LENGTH else line[: MESSAGE_MAX_LENGTH - 1] + "…"


def result(pods: Sequence[PodView], outcomes: Sequence[str]) -> LoadResult | None:
    """The newest Pod's answer with one of these outcomes."""
    for pod in pods:
        for answer in pod.results():
            if answer.outcome in outcomes:
                return answer
    return None


def failure(job: JobView, pods: Sequence[PodView], before: Reason | None) -> Failure:
    """Why a Job failed; before: what it was known to be stuck on."""
    if job.failure == "DeadlineExceeded":
        if before in (Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.QUOTA_EXCEEDED):
            return Failure(before, f"Job {job.name} never got going before its deadline")
        return Failure(Reason.DEADLINE_EXCEEDED, f"Job {job.name} ran into its deadline")
    answer = result(pods, ("failed",))
    if answer is not None and answer.reason is not None:
        return Failure(answer.reason, answer.message or "the loader gave no details")
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
                Reason.OUT_OF_MEMORY, f"container {container.name} ran out of memory in {pod.name}"
            )
        return Failure(
            Reason.LOADER_CRASHED,
            f"container {container.name} of Pod {pod.name} ended with exit code"
            f" {container.exit_code} ({container.reason or 'Error'}) and gave no answer",
        )
    return None


def waiting(job: JobView, pods: Sequence[PodView], job_warning: str) -> Wait:
    """Why no container of a Job runs."""
    if not pods:
        if "exceeded quota" in job_warning:
            return Wait(job_warning, Reason.QUOTA_EXCEEDED)
        return Wait(job_warning) if job_warning else _starting(job)
    pod = pods[0]
    if not pod.may_write:
        answer = result([pod], ("failed",))
        reason = answer.reason if answer is not None else None
        final = reason is not None and reason.exit_code is ExitCode.PERMANENT
        then = f"Job {job.name} is ending" if final else f"another Pod of Job {job.name} follows"
        return Wait(f"{last_failure(pod)}; {then}")
    if pod.unscheduled:
        why = f"Pod {pod.name} waits for a node: {pod.unscheduled}"
        if "persistentvolumeclaim" in pod.unscheduled and "not found" in pod.unscheduled:
            return Wait(why, Reason.CLAIM_NOT_FOUND)
        return Wait(why, Reason.UNSCHEDULABLE, pod.created)
    for container in pod.containers:
        if container.state == "waiting" and container.reason in _IMAGE_REASONS:
            why = f"Pod {pod.name} waits for its image: {container.message or container.reason}"
            return Wait(why, Reason.IMAGE_PULL_FAILED, pod.created)
    reasons = {one.reason for one in pod.containers if one.state == "waiting" and one.reason}
    reasons -= {"PodInitializing", "ContainerCreating"}
    detail = f": {', '.join(sorted(reasons))}" if reasons else ""
    return Wait(f"Pod {pod.name} is starting{detail}") if detail else _starting(job)


def _starting(job: JobView) -> Wait:
    # One text for all that is normal: each change would cost a status write.
    return Wait(f"Job {job.name} was created; its Pod is starting")


def last_failure(pod: PodView) -> str:
    """A failed Pod in a few words."""
    answer = result([pod], ("failed",))
    if answer is not None and answer.reason is not None:
        return f"Pod {pod.name} failed ({answer.reason}: {answer.message.rstrip('.')})"
    crash = _crash(pod)
    if crash is not None:
        return crash.message
    return f"Pod {pod.name} ended ({pod.reason or pod.phase})"


def load_result(pods: Sequence[PodView]) -> LoadResult | None:
    """The answer of a load that succeeded: complete, and with its artifact."""
    answer = result(pods, ("loaded",))
    return answer if answer is not None and answer.artifact is not None else None


def was_removed(pods: Sequence[PodView]) -> bool:
    """Whether a clean-up Pod says that it is done."""
    return result(pods, ("removed",)) is not None


def convert_has_begun(job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether fetching is over: its container ended well, or the Job counts a ready Pod."""
    fetched = any(
        one.name == names.CONTAINER_FETCH and one.exit_code == 0
        for one in (pods[0].containers if pods else ())
    )
    return fetched or job.ready > 0
