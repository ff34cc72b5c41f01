"""What the status reports about the last failure of a Job while its next Pod starts. Pure."""

from __future__ import annotations

from sd_api.reasons import ReadyReason, Reason
from sd_api.status import Phase
from sd_operator.resources.observed import JobView
from sd_operator.rules import conditions, diagnose
from sd_operator.rules.diagnose import Failure, StartDelay
from sd_operator.rules.input import Input
from sd_operator.rules.step import KeepStalled, Report

_WORDS_MAX_LENGTH = 600
"""Limit of a Pod's failure message. It leaves room in a cause for what the Job does next."""


def report_start(inp: Input, job: JobView, delay: StartDelay) -> Report:
    """Report that a Pod of the Job starts; the message begins with the last failure, if any.

    If something delays the start, the message is the cause of the delay, which is newer.
    """
    pods, failure = inp.observed.pods_of(job), last_failure(inp, job)
    message = diagnose.clean(delay.message)
    has_ended = bool(pods) and not pods[0].may_write
    if failure is not None and (has_ended or delay.is_normal):
        is_next = bool(pods) and not has_ended
        then = "; its next Pod is starting" if is_next else diagnose.next_step(job, pods)
        message = failure.message + then
    return Report(
        Phase.PENDING,
        ReadyReason.PENDING,
        message,
        reconciling=True,
        stalled=KeepStalled(),
        last_failure=failure,
        delay=delay.reason,
    )


def last_failure(inp: Input, job: JobView) -> Failure | None:
    """Return the failure of the Job's newest failed Pod, shortened to fit into the status.

    If this Pod was deleted before the next Pod started, its failure is read from the status.
    """
    failure, status = diagnose.newest_failure(inp.observed.pods_of(job)), inp.status
    if failure is not None:
        words = conditions.fit(diagnose.clean(failure.message), limit=_WORDS_MAX_LENGTH)
        return Failure(failure.reason, words)
    recorded = status.last_failure
    if recorded is None or status.job is None or status.job.uid != job.uid:
        return None
    return Failure(Reason.parse(recorded.reason) or Reason.LOADER_CRASHED, recorded.message)
