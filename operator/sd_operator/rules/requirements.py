"""Rules about what a load needs: a PVC that models may use, and an allowed PriorityClass."""

from __future__ import annotations

from dataclasses import replace

from sd_api.reasons import Reason, Retry
from sd_operator.rules.diagnose import Failure
from sd_operator.rules.input import Input
from sd_operator.rules.step import KeepStalled, Proceed, Report, Step
from sd_operator.rules.stopping import stop_all_jobs


def claim_does_not_exist(inp: Input) -> Step | None:
    """Report that there is no PVC to load onto. An event of the PVC starts the next pass."""
    claim = inp.observed.claim
    if claim is not None and not claim.deleting:
        return None
    state = "is being deleted" if claim else "does not exist"
    failure = Failure(
        Reason.CLAIM_NOT_FOUND,
        f"PersistentVolumeClaim {inp.claim_name} {state} in namespace {inp.model.namespace}",
    )
    return Proceed(_report(inp, failure))


def claim_is_not_allowed(inp: Input) -> Step | None:
    """Stop the Jobs if models may not use the PVC, and report this.

    A change of the PVC's label starts the next pass.
    """
    if inp.claim_is_allowed:
        return None
    failure = Failure(
        Reason.CLAIM_NOT_ALLOWED,
        f"PersistentVolumeClaim {inp.claim_name} in namespace {inp.model.namespace} may not be used"
        " for models",
    )
    return stop_all_jobs(inp, _report(inp, failure))


def priority_class_is_not_allowed(inp: Input) -> Step | None:
    """Report that the administrator does not allow the PriorityClass that spec.job names."""
    loader, spec = inp.settings.loader, inp.model.spec
    job = spec.job if spec is not None and loader.allow_overrides else None
    name = job.priority_class_name if job is not None else None
    if name is None or loader.allows_priority_class(name):
        return None
    message = f"spec.job.priorityClassName: PriorityClass {name} is not allowed for loads"
    return Proceed(Report.of_failure(Failure(Reason.PRIORITY_CLASS_NOT_ALLOWED, message)))


def _report(inp: Input, failure: Failure) -> Report:
    """Report a problem of the PVC. Keep the condition Stalled if the load had failed for good."""
    report = Report.of_failure(failure)
    return replace(report, stalled=KeepStalled()) if _failed_for_good(inp) else report


def _failed_for_good(inp: Input) -> bool:
    """Whether the last load of the wanted version failed, and would fail on any volume."""
    reason = inp.stalled
    if not inp.same_load or reason is None or inp.status.completion_time is None:
        return False
    of_this_volume = {Reason.UNSUPPORTED_VOLUME, Reason.ARTIFACT_MISSING}
    return reason.retry is not Retry.RESYNC and reason not in of_this_volume
