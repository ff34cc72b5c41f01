"""The rules of a model that is being deleted, as a chain: the first that applies decides.

The finalizer is set before the first Job and never without one to follow, so a model without it
has left nothing on the volume.
"""

from __future__ import annotations

from sd_api import names
from sd_api.reasons import ReadyReason, Reason
from sd_api.status import Phase
from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules import diagnose, manifests
from sd_operator.rules.decision import FinalizerChange
from sd_operator.rules.diagnose import Failure
from sd_operator.rules.input import Input, Rule, Standing, Step

_REFUSAL_RETRY_SECONDS = 30.0


def it_is_not_ours(inp: Input) -> Step | None:
    """Without our finalizer deletion does not wait for us."""
    if inp.model.has_finalizer:
        return None
    return Step(_deleting("the resource is being deleted"))


def the_load_still_runs(inp: Input) -> Step | None:
    """Loader Jobs are deleted first, so that nothing is written while files are removed."""
    load_jobs = inp.observed.of_role(names.ROLE_LOAD)
    running = tuple(job for job in load_jobs if job.state is JobState.RUNNING and not job.deleting)
    if running:
        return Step(_deleting("the loader Job is being stopped"), delete=running)
    return None


def the_user_gives_the_files_up(inp: Input) -> Step | None:
    """The annotation releases the resource at once."""
    if inp.model.annotations.get(names.ANNOTATION_SKIP_CLEANUP) != "true":
        return None
    return _release(f"annotation {names.ANNOTATION_SKIP_CLEANUP}: the files stay on the volume")


def the_claim_is_gone(inp: Input) -> Step | None:
    """The files went with their volume."""
    claim, artifact = inp.observed.claim, inp.status.artifact
    if claim is None and not inp.observed.fresh:
        return Step(_deleting("is the claim really gone?"), look=True)
    if claim is None or claim.deleting:
        return _release(f"PersistentVolumeClaim {inp.claim_name} is gone, and the files with it")
    remade = artifact is not None and artifact.claim_uid not in (None, claim.uid)
    if artifact is None or not remade or inp.status.load_hash != artifact.load_hash:
        return None
    return _release(f"PersistentVolumeClaim {inp.claim_name} was made anew, without the files")


def the_namespace_ends(inp: Input) -> Step | None:
    """No Job can be made there any more, and the claim goes with the namespace."""
    if inp.observed.refusal is None or not inp.observed.refusal.namespace_terminating:
        return None
    return _release(f"namespace {inp.model.namespace} is being deleted, and its claims with it")


def a_pod_may_still_write(inp: Input) -> Step | None:
    """A loader Pod takes its time to stop."""
    cleaning = {job.uid for job in inp.observed.of_role(names.ROLE_REMOVE)}
    writing = [pod for pod in inp.observed.pods if pod.may_write and pod.job_uid not in cleaning]
    if not writing:
        return None
    standing = _deleting(f"Pod {writing[0].name} is stopping")
    if not inp.observed.fresh:
        return Step(standing, look=True)
    return Step(standing, wake_after=inp.settings.poll_seconds)


def the_files_are_removed(inp: Input) -> Step | None:
    """The clean-up Job is done."""
    job = _current(inp)
    if job is None or job.state is not JobState.COMPLETE:
        return None
    return _release("the files are kept" if inp.model.retain else "the files are removed")


def the_clean_up_is_running(inp: Input) -> Step | None:
    """Wait for the clean-up Job."""
    job = _current(inp)
    if job is None or job.state is not JobState.RUNNING:
        return None
    pods = inp.observed.pods_of(job)
    detail = f"clean-up Job {job.name} is running"
    if not pods or pods[0].running is None:
        detail = diagnose.clean(diagnose.waiting(job, pods, inp.observed.job_warning).message)
    return Step(_failing(inp, detail, job.name), wake_after=_wake(inp))


def the_clean_up_failed(inp: Input) -> Step | None:
    """Try again, ever more slowly, until the user gives the files up."""
    job = _current(inp)
    if job is None or job.state is not JobState.FAILED or job.ended is None:
        return None
    again = job.ended + inp.retry_delay(job.attempt)
    if inp.now >= again:
        return None
    failure = diagnose.failure(job, inp.observed.pods_of(job), None)
    detail = f"clean-up Job {job.name} failed ({failure.reason}: {diagnose.clean(failure.message)})"
    return Step(
        _failing(inp, detail, job.name),
        wake_after=min(_wake(inp), (again - inp.now).total_seconds()),
    )


def the_job_was_refused(inp: Input) -> Step | None:
    """The API server refused the clean-up Job: say its words, and try again later."""
    refusal = inp.observed.refusal
    if refusal is None or (inp.now - refusal.at).total_seconds() >= _REFUSAL_RETRY_SECONDS:
        return None
    detail = f"the clean-up Job cannot be created: {diagnose.clean(refusal.message)}"
    return Step(_failing(inp, detail, ""), wake_after=_REFUSAL_RETRY_SECONDS)


def the_files_are_to_be_removed(inp: Input) -> Step:
    """Create the clean-up Job."""
    attempts = [job.attempt for job in inp.observed.of_role(names.ROLE_REMOVE)]
    attempt = max(attempts, default=-1) + 1
    job = manifests.plan_remove(inp.model, inp.settings, inp.claim_name, attempt)
    detail = f"clean-up Job {job.name} was created"
    return Step(_failing(inp, detail, job.name), create=job, wake_after=_wake(inp))


RULES: tuple[Rule, ...] = (
    it_is_not_ours,
    the_load_still_runs,
    the_user_gives_the_files_up,
    the_claim_is_gone,
    the_namespace_ends,
    a_pod_may_still_write,
    the_files_are_removed,
    the_clean_up_is_running,
    the_clean_up_failed,
    the_job_was_refused,
    the_files_are_to_be_removed,
)


def _current(inp: Input) -> JobView | None:
    alive = [job for job in inp.observed.of_role(names.ROLE_REMOVE) if not job.deleting]
    return alive[-1] if alive else None


def _deleting(message: str) -> Standing:
    return Standing(Phase.DELETING, ReadyReason.DELETING, message)


def _failing(inp: Input, detail: str, job_name: str) -> Standing:
    """Deleting; and stalled once it has lasted too long."""
    deleted_at = inp.model.deleted_at
    if deleted_at is None or inp.now - deleted_at < inp.stuck_after:
        return _deleting(detail)
    failure = Failure(Reason.CLEANUP_FAILED, detail)
    return Standing(Phase.DELETING, ReadyReason.DELETING, failure.text(job_name), stalled=failure)


def _wake(inp: Input) -> float:
    """A missed event, or the moment to call it stalled, is noticed soon."""
    return min(inp.settings.resync_seconds, 60.0)


def _release(why: str) -> Step:
    return Step(_deleting(why), finalizer=FinalizerChange.REMOVE, released=why)
