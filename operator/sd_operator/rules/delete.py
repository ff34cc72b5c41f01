"""The rules of a model that is being deleted: the first one that applies decides.

The finalizer is added before the first Job is created, so a model without it has no files.
"""

from __future__ import annotations

from dataclasses import replace

from sd_api import names
from sd_api.reasons import OF_THE_CLUSTER, SKIP_CLEANUP_REMEDY, ReadyReason, Reason
from sd_api.status import Phase
from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules import diagnose, manifests
from sd_operator.rules.decision import CreateJob, DeleteJobs, Refresh, Wait
from sd_operator.rules.diagnose import Failure
from sd_operator.rules.input import Input
from sd_operator.rules.step import Finish, Proceed, Report, Rule, Step
from sd_operator.rules.stopping import wait_for_pods

_REJECTION_RETRY_SECONDS = 30.0


def deleted_model_has_no_finalizer(inp: Input) -> Step | None:
    """Wait: the resource is deleted without the operator."""
    return None if inp.model.has_finalizer else Wait("the deletion does not wait for the operator")


def rights_ended_with_the_namespace(inp: Input) -> Step | None:
    """Finish: the namespace is being deleted, and the operator's Role in it is gone already."""
    if not inp.observed.namespace_ends:
        return None
    return Finish(_namespace_ends(inp))


def load_job_is_not_stopped(inp: Input) -> Step | None:
    """Delete the load Jobs that run, because they could write while files are removed."""
    job, jobs = inp.observed.load_job, inp.observed.unrecorded
    if job is not None and job.state is JobState.RUNNING and not job.deleting:
        jobs = (job, *jobs)
    if not jobs:
        return None
    return Proceed(_deleting("the loader Job is being stopped"), job=DeleteJobs(jobs))


def cleanup_is_skipped(inp: Input) -> Step | None:
    """Finish without a clean-up, because the user asks for this by an annotation."""
    if inp.model.annotations.get(names.ANNOTATION_SKIP_CLEANUP) != "true":
        return None
    return Finish(f"annotation {names.ANNOTATION_SKIP_CLEANUP}: the files stay on the volume")


def claim_is_gone(inp: Input) -> Step | None:
    """Finish: the PVC is gone, is being deleted or was replaced, so the files are gone as well."""
    claim, artifact = inp.observed.claim, inp.status.artifact
    if claim is None and not inp.observed.fresh:
        return Refresh(f"PersistentVolumeClaim {inp.claim_name} is not in the cache")
    if claim is None or claim.deleting:
        return Finish(f"PersistentVolumeClaim {inp.claim_name} is gone, and the files with it")
    replaced = artifact is not None and artifact.claim_uid not in (None, claim.uid)
    if artifact is None or not replaced or inp.status.load_hash != artifact.load_hash:
        return None
    return Finish(f"PersistentVolumeClaim {inp.claim_name} was replaced; the files are gone")


def cleanup_claim_is_not_allowed(inp: Input) -> Step | None:
    """Finish without a clean-up: models may not use the PVC, so nothing on it is removed."""
    if inp.claim_is_allowed:
        return None
    return Finish(
        f"PersistentVolumeClaim {inp.claim_name} may not be used for models, and nothing is"
        " published on it"
    )


def namespace_is_terminating(inp: Input) -> Step | None:
    """Finish: no Job can be created any more, and the PVC is deleted with the namespace."""
    if inp.observed.rejection is None or not inp.observed.rejection.namespace_terminating:
        return None
    return Finish(_namespace_ends(inp))


def loader_pod_may_write(inp: Input) -> Step | None:
    """Wait until the Pods of the load have stopped."""
    cleanup = inp.status.cleanup_job.uid if inp.status.cleanup_job else None
    return wait_for_pods(inp, cleanup, _deleting)


def claim_was_never_bound(inp: Input) -> Step | None:
    """Finish: no Pod could ever mount the PVC, so it has no files; no clean-up Job could start."""
    claim = inp.observed.claim
    if claim is None or not claim.never_bound or inp.published is not None:
        return None
    if not inp.observed.fresh:
        return Refresh(f"PersistentVolumeClaim {claim.name} may have been bound in the meantime")
    return Finish(f"PersistentVolumeClaim {claim.name} was never bound, so nothing is published")


def cleanup_job_succeeded(inp: Input) -> Step | None:
    """Finish: the files are removed, or kept as deletionPolicy asks."""
    job = _current(inp)
    if job is None or job.state is not JobState.COMPLETE:
        return None
    return Finish("the files are kept" if inp.model.retain else "the files are removed")


def cleanup_job_is_running(inp: Input) -> Step | None:
    """Report the running clean-up Job, or why its Pod does not start."""
    job = _current(inp)
    if job is None or job.state is not JobState.RUNNING:
        return None
    pods = inp.observed.pods_of(job)
    if pods and pods[0].running is not None:
        report = _cleaning(inp, f"clean-up Job {job.name} is running", job.name)
        return Proceed(report, wake_after=_wake(inp))
    delay = diagnose.observed_delay(inp.observed, job, inp.now)
    reason = delay.reason if delay.reason in OF_THE_CLUSTER else Reason.CLEANUP_FAILED
    return Proceed(
        _cleaning(inp, diagnose.clean(delay.message), job.name, reason),
        wake_after=min(_wake(inp), diagnose.next_warning(pods, inp.now)),
    )


def cleanup_job_failed(inp: Input) -> Step | None:
    """Report the failed clean-up until its next attempt is due, after growing intervals."""
    job = _current(inp)
    if job is None or job.state is not JobState.FAILED or job.ended is None:
        return None
    retry_at = job.ended + inp.retry_delay(job.attempt)
    if inp.now >= retry_at:
        return None
    failure = diagnose.job_failure(job, inp.observed.pods_of(job), None)
    detail = f"clean-up Job {job.name} failed ({failure.reason}: {diagnose.clean(failure.message)})"
    return Proceed(
        _cleaning(inp, detail, job.name),
        wake_after=min(_wake(inp), (retry_at - inp.now).total_seconds()),
    )


def cleanup_job_is_not_observed(inp: Input) -> Step | None:
    """Refresh: the recorded clean-up Job is not in the cache, but may run.

    A second clean-up Job must not start beside it.
    """
    job = inp.status.cleanup_job
    if job is None or inp.observed.cleanup_job is not None or inp.observed.fresh:
        return None
    return Refresh(f"clean-up Job {job.name} is not in the cache")


def cleanup_job_was_rejected(inp: Input) -> Step | None:
    """Report that the API server rejected the clean-up Job, which is tried again after a pause."""
    rejection = inp.observed.rejection
    if rejection is None or (inp.now - rejection.at).total_seconds() >= _REJECTION_RETRY_SECONDS:
        return None
    detail = f"the clean-up Job cannot be created: {diagnose.clean(rejection.message)}"
    return Proceed(_cleaning(inp, detail, ""), wake_after=_REJECTION_RETRY_SECONDS)


def cleanup_is_due(inp: Input) -> Step:
    """Create a clean-up Job."""
    attempt = inp.next_attempt(inp.status.cleanup_job)
    job = manifests.plan_remove(inp.model, inp.settings, inp.claim_name, attempt)
    detail = f"clean-up Job {job.name} was created"
    return Proceed(_cleaning(inp, detail, job.name), job=CreateJob(job), wake_after=_wake(inp))


RULES: tuple[Rule, ...] = (
    # The model has no files, and its deletion would not wait for anything that we do.
    deleted_model_has_no_finalizer,
    # Jobs and PVCs cannot be read any more, and the namespace controller deletes them.
    rights_ended_with_the_namespace,
    # Even if the files stay: the load is no longer wanted.
    load_job_is_not_stopped,
    # The user's annotation counts in every state of the clean-up.
    cleanup_is_skipped,
    # Without a volume there is nothing to remove, and a clean-up Job could not start.
    claim_is_gone,
    # Before any clean-up Job, which would mount the PVC.
    cleanup_claim_is_not_allowed,
    # A clean-up Job could not be created.
    namespace_is_terminating,
    # A Pod that is stopping could write after the files were removed.
    loader_pod_may_write,
    # Before a clean-up Job: its Pod could be the first to bind the PVC, and would find an empty
    # volume. After the loader's Pods have stopped, because they could bind the PVC, too.
    claim_was_never_bound,
    cleanup_job_succeeded,
    cleanup_job_is_running,
    # Does not apply once it is time to retry; the rules below create the next Job then.
    cleanup_job_failed,
    # The rules from here on create a Job, so they need to know that no other one runs.
    cleanup_job_is_not_observed,
    # Before the Job, so that a rejected one is not created again in every pass.
    cleanup_job_was_rejected,
    cleanup_is_due,
)


def _namespace_ends(inp: Input) -> str:
    return f"namespace {inp.model.namespace} is being deleted, and its volumes with it"


def _current(inp: Input) -> JobView | None:
    """Return the clean-up Job, unless it is being deleted."""
    job = inp.observed.cleanup_job
    return None if job is None or job.deleting else job


def _deleting(message: str) -> Report:
    return Report(Phase.DELETING, ReadyReason.DELETING, message)


def _cleaning(
    inp: Input, detail: str, job_name: str, reason: Reason = Reason.CLEANUP_FAILED
) -> Report:
    """Report the clean-up; the model is Stalled once the deletion has lasted too long."""
    deleted_at = inp.model.deleted_at
    if deleted_at is None or inp.now - deleted_at < inp.stuck_after:
        return replace(_deleting(detail), delay=reason if reason in OF_THE_CLUSTER else None)
    failure = Failure(reason, detail)
    note = "" if reason is Reason.CLEANUP_FAILED else SKIP_CLEANUP_REMEDY
    text = failure.text(job_name, note)
    return Report(Phase.DELETING, ReadyReason.DELETING, text, stalled=failure)


def _wake(inp: Input) -> float:
    """Return the seconds until the next pass: at most 60, in case an event was missed."""
    return min(inp.settings.resync_seconds, 60.0)
