"""The status that a step leads to."""

from __future__ import annotations

from sd_api.load import RemoveRequest
from sd_api.reasons import ReadyReason, Reason, WebhookReason
from sd_api.status import (
    Condition,
    ConditionType,
    JobStatus,
    LastFailure,
    Phase,
    Status,
    StatusArtifact,
    StatusProgress,
    WebhookStatus,
)
from sd_operator.base import times
from sd_operator.rules import conditions
from sd_operator.rules.decision import JobPlan
from sd_operator.rules.diagnose import NOT_OF_A_LOAD, Failure
from sd_operator.rules.input import Input
from sd_operator.rules.outbox import OutboxChange
from sd_operator.rules.step import (
    KeepStalled,
    LoadQueued,
    LoadRunning,
    LoadSucceeded,
    Proceed,
    Report,
)


def status_after(inp: Input, step: Proceed, outbox: OutboxChange) -> Status:
    """Return the whole new status; what the step does not change stays as it is."""
    report, load, model = step.report, step.load, inp.model
    loaded = load if isinstance(load, LoadSucceeded) else None
    artifact = loaded.artifact if loaded else _kept_artifact(inp)
    served = artifact if (loaded or inp.is_served) and not inp.deleting else None
    progress = load.progress if isinstance(load, LoadRunning) else None
    phase = Phase.READY if served and not report.reconciling else report.phase
    failure = report.last_failure
    updates: dict[str, object] = {
        "observed_generation": model.generation,
        "model_id": model.model_id,
        "model_type": model.type_with(artifact),
        "phase": phase,
        "reason": _reason(inp, report, phase),
        "conditions": _conditions(inp, step, served, outbox),
        "progress": StatusProgress.of(progress) if progress else None,
        "last_failure": failure
        and LastFailure(reason=failure.reason.value, message=failure.message),
        "artifact": artifact,
        "source": loaded.source if loaded else (inp.status.source if artifact else None),
        "webhook": _webhook(outbox),
    }
    if isinstance(load, LoadQueued):
        updates |= {"job": load.job, "start_time": None, "completion_time": None}
    elif load is not None:
        ended = None if isinstance(load, LoadRunning) else times.stamp(load.completion_time)
        updates |= {
            "load_hash": inp.wanted,
            "job": load.job,
            "start_time": times.stamp(load.start_time),
            "completion_time": ended,
        }
    return inp.status.model_copy(update=updates)


def with_created_job(status: Status, plan: JobPlan, uid: str) -> Status:
    """Return the status with the record of the Job that was just created, including its uid."""
    job = JobStatus(name=plan.name, uid=uid, attempt=plan.attempt)
    field = "cleanup_job" if isinstance(plan.request, RemoveRequest) else "job"
    return status.model_copy(update={field: job})


def _kept_artifact(inp: Input) -> StatusArtifact | None:
    """Return the published artifact with its new missingTime; None if its PVC was replaced."""
    published = inp.published
    if inp.observed.claim is None:
        return inp.status.artifact
    if published is None or not inp.missing_changes:
        return published
    since = times.stamp(inp.now) if inp.is_missing else None
    return published.model_copy(update={"missing_time": since})


def _reason(inp: Input, report: Report, phase: Phase) -> str | None:
    """Return status.reason; None if the model is Ready, or if the reason only repeats the phase.

    A load that is tried again keeps the reason of its last failure.
    """
    reason: Reason | ReadyReason | None = report.delay
    if isinstance(report.stalled, Failure):
        reason = report.stalled.reason
    elif reason is None and report.last_failure is not None:
        reason = report.last_failure.reason
    elif reason is None and isinstance(report.stalled, KeepStalled) and _keeps_stalled(inp):
        is_retry = report.reconciling or report.phase is Phase.QUEUED
        reason = inp.stalled if is_retry else None
    word = (reason or report.reason).value
    return None if report.phase is Phase.READY or word == phase.value else word


def _keeps_stalled(inp: Input) -> bool:
    """Whether the condition Stalled is about an earlier attempt of this load."""
    return inp.same_load and inp.stalled not in NOT_OF_A_LOAD


def _webhook(outbox: OutboxChange) -> WebhookStatus | None:
    """Return the outbox for the status; None if it is empty."""
    if not outbox.entries:
        return None
    return WebhookStatus(outbox=list(outbox.entries), newest_ended=outbox.newest_ended)


def _conditions(
    inp: Input, step: Proceed, served: StatusArtifact | None, outbox: OutboxChange
) -> list[Condition]:
    report = step.report
    result = list(inp.status.conditions)

    def put(
        kind: ConditionType,
        true: bool,
        reason: ReadyReason | WebhookReason | Reason,
        message: str,
        generation: int,
    ) -> None:
        nonlocal result
        condition = Condition(
            type=kind,
            status="True" if true else "False",
            reason=reason.value,
            message=conditions.fit(message),
            observed_generation=generation,
            last_transition_time=times.stamp(inp.now),
        )
        result = conditions.put(result, condition)

    generation = inp.model.generation
    if served is not None:
        text = _served_message(inp, step, served)
        put(ConditionType.READY, True, ReadyReason.LOADED, text, _served_generation(inp, served))
    else:
        put(ConditionType.READY, False, report.reason, report.message, generation)
    if report.reconciling:
        put(ConditionType.RECONCILING, True, report.reason, report.message, generation)
    else:
        result = conditions.drop(result, ConditionType.RECONCILING)
    match report.stalled:
        case Failure(reason=reason):
            failed = report.generation or generation
            put(ConditionType.STALLED, True, reason, report.message, failed)
        case KeepStalled() if _keeps_stalled(inp):
            pass
        case _:
            result = conditions.drop(result, ConditionType.STALLED)
    if inp.webhook is None:
        return conditions.drop(result, ConditionType.WEBHOOK_DELIVERED)
    if outbox.reason is not None:
        delivered = outbox.reason is WebhookReason.DELIVERED
        put(ConditionType.WEBHOOK_DELIVERED, delivered, outbox.reason, outbox.message, generation)
    return result


def published_message(path: str, claim_name: str) -> str:
    """Return where a model is published, in words."""
    return f"{path} is published on claim {claim_name}"


def _served_message(inp: Input, step: Proceed, served: StatusArtifact) -> str:
    """Return where the model is served, with the note of the loader about the load, if any."""
    if isinstance(step.load, LoadSucceeded):
        return step.report.message
    text = published_message(served.path, served.claim_name)
    previous = inp.ready.message if inp.ready is not None else ""
    return previous if previous.startswith(f"{text}. ") else text


def _served_generation(inp: Input, served: StatusArtifact) -> int:
    """Return the generation of the spec that the served version fits.

    It is the current one, unless an edit of the spec asks for a version that is not served yet.
    """
    ready = inp.ready
    if served.load_hash != inp.wanted and ready is not None and ready.status == "True":
        return ready.observed_generation or 0
    return inp.model.generation
