"""What the status reports about the last failure of a Job while its next Pod starts. Pure."""

from __future__ import annotations

from sd_api.reasons import ReadyReason, Reason
from sd_api.status import ConditionType, Phase
from sd_operator.resources.observed import JobView
from sd_operator.rules import conditions, diagnose
from sd_operator.rules.diagnose import NOT_STARTED, Failure, StartDelay
from sd_operator.rules.input import Input
from sd_operator.rules.step import KeepStalled, Report

_WORDS_MAX_LENGTH = 600
"""Leaves room for what the Job does next within the length of a cause."""
_NEXT_STARTS = "; its next Pod is starting"


def report_start(inp: Input, job: JobView, delay: StartDelay) -> Report:
    """Report that a Pod of the Job starts, after the words about the last failure if there are any.

    They are repeated only while nothing delays the start: the cause of a delay is newer.
    """
    pods, failure = inp.observed.pods_of(job), last_failure(inp, job)
    message = diagnose.clean(delay.message)
    has_ended = bool(pods) and not pods[0].may_write
    if failure is not None and failure.message and (has_ended or delay.is_normal):
        then = _NEXT_STARTS if pods and not has_ended else diagnose.next_step(job, pods)
        message = conditions.fit(diagnose.clean(failure.message), limit=_WORDS_MAX_LENGTH) + then
    return Report(
        Phase.PENDING,
        ReadyReason.PENDING,
        message,
        reconciling=True,
        stalled=KeepStalled(),
        last_failure=failure.reason if failure else None,
    )


def last_failure(inp: Input, job: JobView) -> Failure | None:
    """Return how the last Pod of the Job that failed has ended.

    A Pod may be deleted before the next one starts; then the status still has its reason, and the
    condition its words. The message is empty if only the reason is known.
    """
    seen = diagnose.newest_failure(inp.observed.pods_of(job))
    if seen is not None:
        return seen
    status = inp.status
    reason = Reason.parse(status.reason or "")
    if status.job is None or status.job.uid != job.uid or not inp.same_load:
        return None
    if reason is None or reason in NOT_STARTED or status.completion_time is not None:
        return None
    condition = conditions.find(status.conditions, ConditionType.RECONCILING)
    message = condition.message if condition is not None else ""
    for then in (_NEXT_STARTS, diagnose.next_step(job, ())):
        if message.endswith(then):
            return Failure(reason, message.removesuffix(then).strip())
    return Failure(reason, "")
