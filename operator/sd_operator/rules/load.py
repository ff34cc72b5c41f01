"""The rules of a model that is not being deleted: the first one that applies decides.

Each rule is named after the fact that it finds in the Input.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sd_api.reasons import ReadyReason, Reason, Retry
from sd_api.redaction import redact_url
from sd_api.status import ConditionType, JobStatus, Phase
from sd_api.wire import LoadResult, Stage
from sd_operator.base import times
from sd_operator.resources.observed import WARNING_LOOK_SECONDS, JobState, JobView
from sd_operator.rules import conditions, diagnose, manifests, outcome, queue, retries
from sd_operator.rules.decision import AddFinalizer, CreateJob, Enqueue, Refresh, Wait
from sd_operator.rules.diagnose import NOT_OF_A_LOAD, Failure
from sd_operator.rules.input import Input
from sd_operator.rules.missing import published_files_are_missing, published_volume_is_lost
from sd_operator.rules.requirements import (
    claim_does_not_exist,
    claim_is_not_allowed,
    priority_class_is_not_allowed,
)
from sd_operator.rules.spec_problem import spec_problem
from sd_operator.rules.status import published_message
from sd_operator.rules.step import (
    KeepStalled,
    LoadQueued,
    LoadRunning,
    Proceed,
    Report,
    Rule,
    Step,
)
from sd_operator.rules.stopping import stop_all_jobs, stop_jobs

_PHASES = {
    Stage.DOWNLOADING: Phase.DOWNLOADING,
    Stage.CONVERTING: Phase.CONVERTING,
    Stage.VERIFYING: Phase.VERIFYING,
    Stage.PUBLISHING: Phase.VERIFYING,
}
REJECTION_RETRY = timedelta(seconds=30)
"""How long to wait before a Job that the API server rejected is tried again."""
NO_POD_LOOK_SECONDS = 10.0
"""How long a Job counts as new. While a new Job has no Pod, the next pass comes after this time."""
RESULT_SECONDS = 10.0
"""How long after a Job's end to wait for the event that shows the result of its Pod."""


def spec_is_invalid(inp: Input) -> Step | None:
    """Report that the spec cannot be read, or needs a setting that the operator does not have."""
    problem = spec_problem(inp.model, inp.settings)
    if problem is None:
        return None
    return Proceed(Report.of_failure(Failure(Reason.INVALID_SPEC, problem)))


def previous_load_is_running(inp: Input) -> Step | None:
    """Stop each Job of a version that is no longer wanted, or that is published already."""
    settled = inp.published is not None and inp.published.load_hash == inp.wanted
    unwanted = [job for job in inp.observed.unrecorded if job.load_hash != inp.wanted]
    job = inp.observed.load_job
    if job is not None and (
        job.load_hash != inp.wanted or (settled and not _is_recorded(inp, job))
    ):
        unwanted.append(job)
    message = "waiting for the previous load to stop"
    return stop_jobs(inp, unwanted, Report(Phase.PENDING, ReadyReason.PENDING, message))


def wanted_version_is_published(inp: Input) -> Step | None:
    """Report that the wanted version is published; no load is needed."""
    published = inp.published
    if published is None or published.load_hash != inp.wanted:
        return None
    message = published_message(published.path, published.claim_name)
    return Proceed(Report(Phase.READY, ReadyReason.LOADED, message))


def job_result_is_missing(inp: Input) -> Step | None:
    """Wait for the event with the result of a Job that has ended; Refresh if it does not come."""
    job = _current(inp)
    if job is None or job.ended is None or inp.observed.fresh or _result(inp, job) is not None:
        return None
    why = f"waiting for the result of Job {job.name}"
    waited = (inp.now - job.ended).total_seconds()
    pod_ended = any(not pod.may_write for pod in inp.observed.pods_of(job))
    if not pod_ended and 0 <= waited < RESULT_SECONDS:
        return Wait(why, RESULT_SECONDS - waited)
    return Refresh(why)


def _result(inp: Input, job: JobView) -> LoadResult | None:
    """Return the result of a Job that has ended; None if no result fits the Job's state."""
    pods = inp.observed.pods_of(job)
    succeeded = job.state is JobState.COMPLETE
    return diagnose.load_result(pods) if succeeded else diagnose.newest_result(pods, "failed")


def load_job_succeeded(inp: Input) -> Step | None:
    """Report what a Job that succeeded published; without a result, report a failed load."""
    job = _current(inp)
    if job is None or job.state is not JobState.COMPLETE:
        return None
    if (result := _result(inp, job)) is not None:
        return outcome.published(inp, job, result) if outcome.is_on_this_claim(inp, job) else None
    if not inp.observed.pods_of(job):
        return None  # The result is lost with the Pod; the next Job finds the receipt.
    failure = Failure(
        Reason.LOADER_CRASHED, f"Job {job.name} succeeded but its loader reported no result"
    )
    return outcome.failed(inp, job, failure)


def load_job_failed(inp: Input) -> Step | None:
    """Report why the load failed; the reason decides whether and when it is retried."""
    job = _current(inp)
    if job is None or job.state is not JobState.FAILED:
        return None
    before = inp.stalled if inp.same_load else None
    return outcome.failed(inp, job, diagnose.job_failure(job, inp.observed.pods_of(job), before))


def model_is_suspended(inp: Input) -> Step | None:
    """Stop the Jobs of a model with spec.suspend. All files stay."""
    if inp.model.spec is None or not inp.model.spec.suspend:
        return None
    message = "spec.suspend is true; set it to false to load"
    report = Report(Phase.PENDING, ReadyReason.SUSPENDED, message, stalled=KeepStalled())
    return stop_all_jobs(inp, report)


def load_job_is_suspended(inp: Input) -> Step | None:
    """Report that the Job waits for Kueue, or for another controller that suspends Jobs."""
    job = _current(inp)
    if job is None or job.state is not JobState.RUNNING or not job.suspended:
        return None
    return Proceed(_queued_job(inp, job.name))


def load_job_is_running(inp: Input) -> Step | None:
    """Report the progress of the Job, or why its Pod has not started."""
    job = _current(inp)
    if job is None or job.state is not JobState.RUNNING:
        return None
    pods = inp.observed.pods_of(job)
    if diagnose.load_result(pods) is not None:
        return Wait(f"Job {job.name} is ending")
    running = pods[0].running if pods else None
    converting = diagnose.convert_has_begun(job, pods)
    if running is None and not converting:
        return _starting(inp, job)
    progress = inp.observed.progress
    phase = Phase.CONVERTING if converting else Phase.DOWNLOADING
    if progress is not None:
        phase = max(phase, _PHASES[progress.stage], key=list(Phase).index)
    message = f"Job {job.name} is loading {redact_url(inp.model.url)}"
    report = Report(
        phase,
        ReadyReason(phase.value),
        message,
        reconciling=True,
        stalled=KeepStalled(),
        last_failure=retries.last_failure(inp, job),
    )
    return Proceed(
        report,
        LoadRunning(outcome.job_status(job), outcome.start_time(inp, job), progress),
        wake_after=inp.settings.poll_seconds,
    )


def _starting(inp: Input, job: JobView) -> Step:
    """Report why no container of the Job runs yet."""
    pods = inp.observed.pods_of(job)
    delay = diagnose.observed_delay(inp.observed, job, inp.now)
    failure = delay.failure(inp.now, inp.stuck_after)
    report = retries.report_start(inp, job, delay)
    if failure is not None:
        stuck = Report.of_failure(failure, job.name)
        report = replace(stuck, reconciling=True, last_failure=report.last_failure)
    wake = inp.settings.resync_seconds
    if not pods or inp.observed.unbound_claim(pods[0]) is not None:
        is_young = inp.now - job.created < timedelta(seconds=NO_POD_LOOK_SECONDS)
        wake = NO_POD_LOOK_SECONDS if is_young else WARNING_LOOK_SECONDS
    elif failure is None and delay.reason is not None and delay.since is not None:
        wake = max(1.0, (delay.since + inp.stuck_after - inp.now).total_seconds())
    if pods and pods[0].scheduled is not None:
        wake = min(wake, diagnose.next_warning(pods, inp.now))
    load = LoadRunning(outcome.job_status(job), outcome.start_time(inp, job))
    return Proceed(report, load, wake_after=wake)


def last_load_failed(inp: Input) -> Step | None:
    """Report the failure of the wanted version's last load while a retry is not due.

    After an edit of the spec the retry is due at once, even if the loadHash is the same: removing
    a wrong modelType may leave the hash as it was.
    """
    reason, status = inp.stalled, inp.status
    ended = times.parse(status.completion_time)
    if not inp.same_load or reason is None or reason in NOT_OF_A_LOAD or ended is None:
        return None
    condition = conditions.find(status.conditions, ConditionType.STALLED)
    if condition is not None and inp.model.generation > (condition.observed_generation or 0):
        return None
    retry_at = ended + inp.retry_delay(status.job.attempt if status.job else 0)
    if reason.retry is Retry.RESYNC and inp.now >= retry_at:
        return None
    message = condition.message if condition else ""
    report = Report(Phase.FAILED, reason, message, stalled=KeepStalled())
    wake = (retry_at - inp.now).total_seconds() if reason.retry is Retry.RESYNC else None
    return Proceed(report, wake_after=wake)


def load_job_was_deleted(inp: Input) -> Step | None:
    """Delay the load if a Job, but not the first, disappeared before its end was seen."""
    status = inp.status
    if not inp.same_load or status.job is None or status.completion_time is not None:
        return None
    if status.job.uid is None:
        return None  # The Job may run: the same attempt is made again and finds it by its name.
    if not inp.observed.fresh:
        return Refresh(f"Job {status.job.name} is not in the cache")
    was_suspended = inp.ready is not None and inp.ready.reason == ReadyReason.SUSPENDED
    started = times.parse(status.start_time)
    if was_suspended or started is None or status.job.attempt == 0:
        return None
    left = (started + inp.retry_delay(status.job.attempt - 1) - inp.now).total_seconds()
    if left <= 0:
        return None
    message = f"Job {status.job.name} was deleted before it ended; the load is retried later"
    return Proceed(_pending(message), wake_after=left)


def load_job_was_rejected(inp: Input) -> Step | None:
    """Report that the API server rejected the Job, which is tried again after a pause."""
    rejection = inp.observed.rejection
    if rejection is None or inp.now - rejection.at >= REJECTION_RETRY:
        return None
    wake = REJECTION_RETRY.total_seconds()
    if rejection.quota_exceeded:
        failure = Failure(Reason.QUOTA_EXCEEDED, rejection.message)
        return Proceed(Report.of_failure(failure), wake_after=wake)
    if rejection.code == 422:
        message = f"the API server rejects spec.job: {rejection.message}"
        return Proceed(Report.of_failure(Failure(Reason.INVALID_SPEC, message)), wake_after=wake)
    message = f"the loader Job cannot be created: {diagnose.clean(rejection.message)}"
    return Proceed(Report(Phase.PENDING, ReadyReason.PENDING, message), wake_after=wake)


def model_is_not_admitted(inp: Input) -> Step | None:
    """Put the model into the queue of loads, unless its load is admitted already."""
    if inp.observed.admitted:
        return None
    position = inp.observed.position
    message = queue.describe_position(position) if position else "waiting for other models to load"
    report = Report(Phase.QUEUED, ReadyReason.QUEUED, message, stalled=KeepStalled())
    return Proceed(report, job=Enqueue())


def finalizer_is_missing(inp: Input) -> Step | None:
    """Add the finalizer. Without it, a deletion would not wait for the clean-up."""
    return None if inp.model.has_finalizer else AddFinalizer("the load is about to start")


def load_is_due(inp: Input) -> Step:
    """Create a load Job."""
    claim = inp.observed.claim
    if claim is None:
        raise AssertionError("the rules before this one make sure of it")
    attempt = inp.next_attempt(_last_job(inp))
    job = manifests.plan_load(inp.model, inp.settings, claim, attempt)
    status = JobStatus(name=job.name, attempt=attempt)
    if inp.settings.loader.kueue_queue is not None:
        return Proceed(_queued_job(inp, job.name), LoadQueued(status), job=CreateJob(job))
    return Proceed(
        _pending(f"Job {job.name} was created; its Pod is starting"),
        LoadRunning(status, inp.now),
        job=CreateJob(job),
        wake_after=NO_POD_LOOK_SECONDS,
    )


RULES: tuple[Rule, ...] = (
    # Without a readable spec no other rule knows what is wanted.
    spec_is_invalid,
    # One load at a time writes; a Job may also run although the wanted version is published.
    previous_load_is_running,
    # These two come before wanted_version_is_published, which would report the version as served.
    # The volume comes first: if it is gone, its files are missing as well.
    published_volume_is_lost,
    published_files_are_missing,
    # The usual case. Does not apply if the PVC is missing: then no version counts as published.
    wanted_version_is_published,
    # Without a PVC no Job can start, and the result of a Job that has ended does not show that the
    # PVC is missing.
    claim_does_not_exist,
    # The event with a Job's result needs time to arrive. Until then, the Job would count as failed.
    job_result_is_missing,
    # The outcome counts even if the model was suspended, or the queue filled up, in the meantime.
    load_job_succeeded,
    load_job_failed,
    # After the rules about a Job that has ended, because what it published stays. This rule stops a
    # running Job, so it stands before the rules that let the Job go on.
    claim_is_not_allowed,
    # Stops a Job that runs or waits in Kueue, so it stands before the rules that let the Job go on.
    model_is_suspended,
    # Before the next rule, which would report it as a problem that a suspended Job has no Pod.
    load_job_is_suspended,
    # Before the queue, which does not stop a running Job.
    load_job_is_running,
    # From here on there is no Job to wait for. The last failure comes first: its reason may forbid
    # or delay another Job.
    last_load_failed,
    # Before another Job is created: the recorded Job may run although it is not in the cache.
    load_job_was_deleted,
    # Before the queue: a model that cannot start lets others go first.
    priority_class_is_not_allowed,
    # Before the queue: a model whose Job was just rejected lets others go first.
    load_job_was_rejected,
    # Before the finalizer: a model that only waits can be deleted at once.
    model_is_not_admitted,
    # Before the Job: from then on there may be files to remove.
    finalizer_is_missing,
    load_is_due,
)


def _pending(message: str) -> Report:
    return Report(
        Phase.PENDING, ReadyReason.PENDING, message, reconciling=True, stalled=KeepStalled()
    )


def _queued_job(inp: Input, job_name: str) -> Report:
    kueue = inp.settings.loader.kueue_queue
    event = f"Kueue to admit it into queue {kueue}" if kueue else "spec.suspend to be set to false"
    message = f"Job {job_name} is waiting for {event}"
    return Report(Phase.QUEUED, ReadyReason.QUEUED, message, stalled=KeepStalled())


def _is_recorded(inp: Input, job: JobView) -> bool:
    """Whether the status already has the outcome of the load Job."""
    status = inp.status
    is_known = status.load_hash == job.load_hash and status.completion_time is not None
    return job.ended is not None and is_known


def _current(inp: Input) -> JobView | None:
    """Return the Job of the wanted version if it is not being deleted and its outcome is open."""
    job = inp.observed.load_job
    if job is None or job.load_hash != inp.wanted or job.deleting or _is_recorded(inp, job):
        return None
    return job


def _last_job(inp: Input) -> JobStatus | None:
    """Return the status's record of the last Job; None if that Job loads another version.

    While a Job waits for Kueue, status.loadHash is that of an earlier load, so the Job's own hash
    is compared, too.
    """
    job = inp.observed.load_job
    is_wanted = inp.same_load or (job is not None and job.load_hash == inp.wanted)
    return inp.status.job if is_wanted else None
