"""The steps of a load Job that ended, and the Job's fields in the status. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sd_api import humanize, names
from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.reasons import ReadyReason, Retry
from sd_api.redaction import redact_url
from sd_api.status import JobStatus, Phase, StatusArtifact, StatusSource
from sd_api.wire import LoadResult
from sd_operator.base import times
from sd_operator.resources.observed import JobView
from sd_operator.rules import diagnose
from sd_operator.rules.diagnose import Failure
from sd_operator.rules.input import Input
from sd_operator.rules.status import published_message
from sd_operator.rules.step import LoadFailed, LoadSucceeded, Proceed, Report, Step


def job_status(job: JobView) -> JobStatus:
    """Return the record of a Job in the status."""
    return JobStatus(name=job.name, uid=job.uid, attempt=job.attempt)


def start_time(inp: Input, job: JobView) -> datetime:
    """Return when the load began: from the status if it records this Job, or else from the Job."""
    is_known = inp.status.job is not None and inp.status.job.name == job.name
    started = times.parse(inp.status.start_time) if is_known else None
    return started or job.started or job.created


def failed(inp: Input, job: JobView, failure: Failure) -> Step:
    """Report that the load failed, and when it is tried again."""
    ended = job.ended or inp.now
    note = ""
    if failure.reason.retry is Retry.RESYNC:
        retry_at = ended + inp.retry_delay(job.attempt)
        note = f"The next attempt is at {times.stamp(retry_at)}."
    return Proceed(
        replace(Report.of_failure(failure, job.name, note), generation=job.generation),
        LoadFailed(job_status(job), start_time(inp, job), ended, failure),
        wake_after=inp.retry_delay(job.attempt).total_seconds(),
    )


def is_on_this_claim(inp: Input, job: JobView) -> bool:
    """Whether the Job was made for this PVC, and not for an earlier one of the same name."""
    claim = inp.observed.claim
    return claim is not None and claim.uid == job.claim_uid


def published(inp: Input, job: JobView, result: LoadResult) -> Step:
    """Report what the load published; the operator computes the paths itself."""
    artifact = result.artifact
    claim = inp.observed.claim
    if artifact is None or claim is None:
        raise AssertionError("the rules before this one make sure of both")
    ended = job.ended or inp.now
    path = names.artifact_path(inp.model.model_id)
    on_volume = StatusArtifact(
        **artifact.model_dump(),
        path=path,
        immutable_path=names.immutable_path(inp.model.uid, inp.wanted),
        claim_name=claim.name,
        claim_uid=claim.uid,
        size=humanize.size(artifact.size_bytes),
        preview_path=(names.preview_path(inp.model.uid, inp.wanted) if result.preview else None),
        picture_path=(names.picture_path(inp.model.uid, inp.wanted) if result.picture else None),
        last_update_time=times.stamp(ended),
    )
    source = result.source.model_dump() if result.source else {}
    note = diagnose.clean(result.message)
    message = published_message(path, claim.name) + (f". {note}" if note else "")
    return Proceed(
        Report(Phase.READY, ReadyReason.LOADED, message),
        LoadSucceeded(
            job_status(job),
            start_time(inp, job),
            ended,
            artifact=on_volume,
            source=StatusSource(**source, url=redact_url(inp.model.url)[:TEXT_MAX_LENGTH]),
        ),
    )
