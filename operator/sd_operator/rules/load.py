"""The rules of a model that is to be loaded, as a chain: the first that applies decides.

Each rule is a function named by the fact that it finds, from what is known to a step, or None.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from sd_api import humanize, names
from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.reasons import ReadyReason, Reason, Retry
from sd_api.redaction import redact_url
from sd_api.status import (
    ConditionType,
    JobStatus,
    Phase,
    StatusArtifact,
    StatusSource,
    WebhookEvent,
)
from sd_api.trained import is_trained_id
from sd_api.wire import LoadResult, Stage
from sd_operator.base import times
from sd_operator.resources.observed import WARNING_LOOK_SECONDS, JobState, JobView
from sd_operator.rules import diagnose, manifests, queue
from sd_operator.rules.decision import FinalizerChange
from sd_operator.rules.diagnose import Failure
from sd_operator.rules.input import NOT_YET, Input, Load, Rule, Standing, Step, where

_PHASES = {
    Stage.DOWNLOADING: Phase.DOWNLOADING,
    Stage.CONVERTING: Phase.CONVERTING,
    Stage.VERIFYING: Phase.VERIFYING,
    Stage.PUBLISHING: Phase.VERIFYING,
}
REFUSAL_RETRY = timedelta(seconds=30)
NO_POD_LOOK_SECONDS = 10.0
ANSWER_SECONDS = 10.0


def spec_is_invalid(inp: Input) -> Step | None:
    """The spec cannot be read, or asks for what the operator's settings lack."""
    problem = inp.model.problem
    if problem is None and _needs_template(inp) and inp.settings.trained_url_template is None:
        problem = (
            "spec.url is a trained model's bare id, and the operator has no link template for"
            " those (SD_OPERATOR_TRAINED_URL_TEMPLATE)"
        )
    if problem is None:
        return None
    return Step(Standing.of(Failure(Reason.INVALID_SPEC, problem)))


def _needs_template(inp: Input) -> bool:
    return is_trained_id(inp.model.url, inp.model.model_type)


def another_load_is_running(inp: Input) -> Step | None:
    """A Job loads what is no longer wanted; it ends before anything else begins."""
    settled = inp.published is not None and inp.published.load_hash == inp.wanted
    others = [
        job
        for job in inp.observed.of_role(names.ROLE_LOAD)
        if job.load_hash != inp.wanted or (settled and not _is_noted(inp, job))
    ]
    return _stop(
        inp, others, Standing(Phase.PENDING, ReadyReason.PENDING, "the former load ends first")
    )


def _stop(inp: Input, unwanted: list[JobView], standing: Standing) -> Step | None:
    """Delete Jobs that have not ended, and wait until nothing of theirs can write."""
    running = tuple(job for job in unwanted if job.state is JobState.RUNNING and not job.deleting)
    if running:
        return Step(standing, delete=running)
    known = {job.uid for job in inp.observed.jobs if not job.deleting and job not in unwanted}
    writing = [pod for pod in inp.observed.pods if pod.may_write and pod.job_uid not in known]
    if not writing:
        return None
    if not inp.observed.fresh:
        return Step(standing, look=True)
    message = f"{standing.message}: Pod {writing[0].name} is stopping"
    return Step(replace(standing, message=message), wake_after=inp.settings.poll_seconds)


def it_is_published(inp: Input) -> Step | None:
    """What is wanted is published: there is nothing to do."""
    if inp.published is None or inp.published.load_hash != inp.wanted:
        return None
    return Step(Standing(Phase.READY, ReadyReason.LOADED, ""))


def the_claim_is_missing(inp: Input) -> Step | None:
    """There is no volume to load onto; a claim's event wakes the model."""
    claim = inp.observed.claim
    if claim is not None and not claim.deleting:
        return None
    what = "is being deleted" if claim else "does not exist"
    failure = Failure(
        Reason.CLAIM_NOT_FOUND,
        f"PersistentVolumeClaim {inp.claim_name} {what} in namespace {inp.model.namespace}",
    )
    return Step(Standing.of(failure))


def its_answer_is_not_here(inp: Input) -> Step | None:
    """A Job has ended, and what its Pod says of that is not seen: another watch tells it."""
    job = _current(inp)
    if job is None or job.ended is None or inp.observed.fresh or _answer(inp, job) is not None:
        return None
    standing = _pending(f"the answer of Job {job.name} is awaited")
    waited = (inp.now - job.ended).total_seconds()
    ended = any(not pod.may_write for pod in inp.observed.pods_of(job))
    if not ended and 0 <= waited < ANSWER_SECONDS:
        return Step(standing, hold=True, wake_after=ANSWER_SECONDS - waited)
    return Step(standing, look=True)


def _answer(inp: Input, job: JobView) -> LoadResult | None:
    """What the loader says of a Job's end."""
    pods = inp.observed.pods_of(job)
    loaded = job.state is JobState.COMPLETE
    return diagnose.load_result(pods) if loaded else diagnose.result(pods, ("failed",))


def the_job_succeeded(inp: Input) -> Step | None:
    """The load is done: its answer becomes the artifact."""
    job = _current(inp)
    if job is None or job.state is not JobState.COMPLETE:
        return None
    if (result := _answer(inp, job)) is not None:
        return _published(inp, job, result) if _on_this_claim(inp, job) else None
    if not inp.observed.pods_of(job):
        return None  # the answer is lost; the receipt on the volume gives it again
    failure = Failure(Reason.LOADER_CRASHED, f"Job {job.name} ended well but gave no answer")
    return _failed(inp, job, failure)


def the_job_failed(inp: Input) -> Step | None:
    """The load failed: say why, and when it is tried again."""
    job = _current(inp)
    if job is None or job.state is not JobState.FAILED:
        return None
    before = inp.stalled if inp.same_load else None
    return _failed(inp, job, diagnose.failure(job, inp.observed.pods_of(job), before))


def it_is_suspended(inp: Input) -> Step | None:
    """The user asked to wait: a running Job is deleted, all files stay."""
    if inp.model.spec is None or not inp.model.spec.suspend:
        return None
    standing = Standing(
        Phase.PENDING,
        ReadyReason.SUSPENDED,
        "spec.suspend is true; set it to false to load",
        keep_stalled=True,
    )
    return _stop(inp, list(inp.jobs), standing) or Step(standing)


def the_job_waits_for_kueue(inp: Input) -> Step | None:
    """The Job is suspended: whoever suspends Jobs in this cluster lets it run, or again."""
    job = _current(inp)
    if job is None or job.state is not JobState.RUNNING or not job.suspended:
        return None
    return Step(_queued(inp, job.name))


def the_job_is_running(inp: Input) -> Step | None:
    """The load is under way, or waits for its Pod."""
    job = _current(inp)
    if job is None or job.state is not JobState.RUNNING:
        return None
    pods = inp.observed.pods_of(job)
    if diagnose.load_result(pods) is not None:
        return Step(_pending(f"Job {job.name} is ending"), hold=True)
    running = pods[0].running if pods else None
    converting = diagnose.convert_has_begun(job, pods)
    if running is None and not converting:
        return _waiting(inp, job)
    phase = Phase.CONVERTING if converting else Phase.DOWNLOADING
    if inp.observed.progress is not None:
        phase = max(phase, _PHASES[inp.observed.progress.stage], key=list(Phase).index)
    message = f"Job {job.name} loads {redact_url(inp.model.url)}"
    return Step(
        Standing(phase, ReadyReason(phase.value), message, reconciling=True, keep_stalled=True),
        load=_load(inp, job),
        progress=inp.observed.progress,
        notify=_started(inp),
        wake_after=inp.settings.poll_seconds,
    )


def _waiting(inp: Input, job: JobView) -> Step:
    pods = inp.observed.pods_of(job)
    wait = diagnose.waiting(job, pods, inp.observed.job_warning)
    failure = wait.stuck(inp.now, inp.stuck_after)
    standing = _pending(diagnose.clean(wait.message))
    if failure is not None:
        standing = replace(Standing.of(failure, job.name), reconciling=True)
    wake = inp.settings.resync_seconds
    if not pods:
        young = inp.now - job.created < timedelta(seconds=NO_POD_LOOK_SECONDS)
        wake = NO_POD_LOOK_SECONDS if young else WARNING_LOOK_SECONDS
    elif failure is None and wait.reason is not None and wait.since is not None:
        wake = max(1.0, (wait.since + inp.stuck_after - inp.now).total_seconds())
    return Step(standing, load=_load(inp, job), notify=_started(inp), wake_after=wake)


def it_failed_before(inp: Input) -> Step | None:
    """The last load of this very spec failed: its reason says whether it is tried again."""
    reason, status = inp.stalled, inp.status
    ended = times.parse(status.completion_time)
    if not inp.same_load or reason is None or reason in NOT_YET or ended is None:
        return None
    again = ended + inp.retry_delay(status.job.attempt if status.job else 0)
    if reason.retry is Retry.RESYNC and inp.now >= again:
        return None
    stalled = next(one for one in status.conditions if one.type == ConditionType.STALLED)
    standing = Standing(Phase.FAILED, reason, stalled.message, keep_stalled=True)
    wake = (again - inp.now).total_seconds() if reason.retry is Retry.RESYNC else None
    return Step(standing, wake_after=wake)


def the_job_was_lost(inp: Input) -> Step | None:
    """A Job was deleted before its end was seen: look again, and do not hurry after many."""
    status = inp.status
    if not inp.same_load or status.job is None or status.completion_time is not None:
        return None
    if not inp.observed.fresh:
        return Step(_pending(f"Job {status.job.name} is gone"), look=True)
    resumed = inp.ready is not None and inp.ready.reason == ReadyReason.SUSPENDED
    started = times.parse(status.start_time)
    if resumed or started is None or status.job.attempt == 0:
        return None
    left = (started + inp.retry_delay(status.job.attempt - 1) - inp.now).total_seconds()
    if left <= 0:
        return None
    return Step(_pending(f"Job {status.job.name} was deleted; another follows"), wake_after=left)


def the_job_was_refused(inp: Input) -> Step | None:
    """The API server refused the Job: say its words, and try again later."""
    refusal = inp.observed.refusal
    if refusal is None or inp.now - refusal.at >= REFUSAL_RETRY:
        return None
    wake = REFUSAL_RETRY.total_seconds()
    if "exceeded quota" in refusal.message:
        failure = Failure(Reason.QUOTA_EXCEEDED, refusal.message)
        return Step(Standing.of(failure), wake_after=wake)
    if refusal.code == 422:
        failure = Failure(Reason.INVALID_SPEC, f"spec.job is refused: {refusal.message}")
        return Step(Standing.of(failure), wake_after=wake)
    message = f"the loader Job cannot be created: {diagnose.clean(refusal.message)}"
    return Step(Standing(Phase.PENDING, ReadyReason.PENDING, message), wake_after=wake)


def it_must_wait_its_turn(inp: Input) -> Step | None:
    """The queue does not let it load yet."""
    if inp.observed.admitted:
        return None
    place = queue.describe(inp.observed.place) if inp.observed.place else "other models load first"
    return Step(
        Standing(Phase.QUEUED, ReadyReason.QUEUED, place, keep_stalled=True), wants_turn=True
    )


def it_is_not_ours_yet(inp: Input) -> Step | None:
    """Deletion must wait for us from before the first Job on."""
    if inp.model.has_finalizer:
        return None
    standing = _pending("the load is about to start")
    return Step(standing, wants_turn=True, finalizer=FinalizerChange.ADD)


def it_is_to_be_loaded(inp: Input) -> Step:
    """Create the Job."""
    attempt = _next_attempt(inp)
    job = manifests.plan_load(inp.model, inp.settings, inp.claim_name, attempt)
    if inp.settings.loader.kueue_queue is not None:
        return Step(_queued(inp, job.name), create=job)  # the load begins when Kueue says so
    load = Load(JobStatus(name=job.name, attempt=attempt), inp.now)
    return Step(
        _pending(f"Job {job.name} was created; its Pod is starting"),
        load=load,
        wants_turn=True,
        create=job,
        notify=_started(inp),
        wake_after=NO_POD_LOOK_SECONDS,
    )


RULES: tuple[Rule, ...] = (
    spec_is_invalid,
    another_load_is_running,
    it_is_published,
    the_claim_is_missing,
    its_answer_is_not_here,
    the_job_succeeded,
    the_job_failed,
    it_is_suspended,
    the_job_waits_for_kueue,
    the_job_is_running,
    it_failed_before,
    the_job_was_lost,
    the_job_was_refused,
    it_must_wait_its_turn,
    it_is_not_ours_yet,
    it_is_to_be_loaded,
)


def _pending(message: str) -> Standing:
    return Standing(
        Phase.PENDING, ReadyReason.PENDING, message, reconciling=True, keep_stalled=True
    )


def _queued(inp: Input, job_name: str) -> Standing:
    kueue = inp.settings.loader.kueue_queue
    waits = f"Kueue to admit it into queue {kueue}" if kueue else "spec.suspend to be set to false"
    message = f"Job {job_name} waits for {waits}"
    return Standing(Phase.QUEUED, ReadyReason.QUEUED, message, keep_stalled=True)


def _is_noted(inp: Input, job: JobView) -> bool:
    """Whether the status already tells this Job's outcome, or that of one after it."""
    status = inp.status
    if job.ended is None or status.load_hash != job.load_hash or status.job is None:
        return False
    ended = status.completion_time is not None
    return job.attempt < status.job.attempt or (ended and job.attempt == status.job.attempt)


def _current(inp: Input) -> JobView | None:
    """The newest Job that loads what is wanted and is not on its way out."""
    alive = [job for job in inp.jobs if not job.deleting and not _is_noted(inp, job)]
    return alive[-1] if alive else None


def _next_attempt(inp: Input) -> int:
    known = [job.attempt for job in inp.jobs]
    if inp.same_load and inp.status.job is not None:
        known.append(inp.status.job.attempt)
    return max(known, default=-1) + 1


def _started(inp: Input) -> tuple[WebhookEvent, ...]:
    """The event of a load that the status does not know yet."""
    return () if inp.same_load else (WebhookEvent.LOAD_STARTED,)


def _load(inp: Input, job: JobView, ended: datetime | None = None) -> Load:
    known = inp.status.job is not None and inp.status.job.name == job.name
    started = times.parse(inp.status.start_time) if known else None
    started = started or job.started or job.created
    return Load(JobStatus(name=job.name, attempt=job.attempt), started, ended)


def _failed(inp: Input, job: JobView, failure: Failure) -> Step:
    ended = job.ended or inp.now
    note = ""
    if failure.reason.retry is Retry.RESYNC:
        again = ended + inp.retry_delay(job.attempt)
        note = f"The next attempt is at {times.stamp(again)}."
    told = inp.same_load and inp.stalled is not None and inp.stalled not in NOT_YET
    return Step(
        Standing.of(failure, job.name, note),
        load=_load(inp, job, ended),
        ended=True,
        notify=_started(inp) + (() if told else (WebhookEvent.LOAD_FAILED,)),
        wake_after=inp.retry_delay(job.attempt).total_seconds(),
    )


def _on_this_claim(inp: Input, job: JobView) -> bool:
    """Whether a Job had this very claim; what one made since holds is not known."""
    claim = inp.observed.claim
    return claim is not None and claim.created <= job.created


def _published(inp: Input, job: JobView, result: LoadResult) -> Step:
    artifact = result.artifact
    claim = inp.observed.claim
    if artifact is None or claim is None:
        raise AssertionError("rules before this one make sure of both")
    ended = job.ended or inp.now
    path = names.artifact_path(inp.model.model_id)
    published = StatusArtifact(
        **artifact.model_dump(),
        path=path,
        immutable_path=names.immutable_path(inp.model.uid, inp.wanted),
        claim_name=claim.name,
        claim_uid=claim.uid,
        size=humanize.size(artifact.size_bytes),
        preview_path=(names.preview_path(inp.model.uid, inp.wanted) if result.preview else None),
        last_update_time=times.stamp(ended),
    )
    source = result.source.model_dump() if result.source else {}
    note = diagnose.clean(result.message)
    message = where(path, claim.name) + (f". {note}" if note else "")
    return Step(
        Standing(Phase.READY, ReadyReason.LOADED, message),
        load=_load(inp, job, ended),
        ended=True,
        artifact=published,
        source=StatusSource(**source, url=redact_url(inp.model.url)[:TEXT_MAX_LENGTH]),
        notify=(*_started(inp), WebhookEvent.LOADED),
    )
