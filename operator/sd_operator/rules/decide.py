"""Makes the decision of a pass from its `Input`. Pure.

A rule of `load.RULES` or `delete.RULES` returns a step; this module makes the new status, the
Events, the webhook calls and the outcome for the metrics from the step.
"""

from __future__ import annotations

from sd_api import names
from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.reasons import EventReason, Reason
from sd_api.redaction import carries_secret, redact_url
from sd_api.status import OutboxEntry, WebhookEvent, WebhookStatus
from sd_operator.base import times
from sd_operator.rules import delete, load, missing, outbox
from sd_operator.rules.decision import (
    Act,
    Decided,
    Decision,
    EventPlan,
    EventType,
    LoadOutcome,
    Release,
    WebhookCall,
)
from sd_operator.rules.diagnose import NOT_OF_A_LOAD, Failure
from sd_operator.rules.input import Input
from sd_operator.rules.outbox import OutboxChange
from sd_operator.rules.status import status_after
from sd_operator.rules.step import Finish, LoadFailed, LoadQueued, LoadSucceeded, Proceed, Step

_STAGES = frozenset({names.CONTAINER_FETCH, names.CONTAINER_CONVERT})


def decide(inp: Input) -> Decided:
    """Return the decision of the first rule that applies, and the name of that rule."""
    rules = delete.RULES if inp.deleting else load.RULES
    for rule in rules:
        step = rule(inp)
        if step is not None:
            return Decided(rule.__name__, _decision(inp, step))
    raise AssertionError("the last rule of a chain always applies")


def _decision(inp: Input, step: Step) -> Decision:
    match step:
        case Proceed():
            return _act(inp, step)
        case Finish(why):
            return _release(inp, why)
        case _:
            return step


def _act(inp: Input, step: Proceed) -> Act:
    change = _recorded(inp)
    if inp.webhook is not None:
        for event in _webhook_events(inp, step):
            entry = _entry(inp, event, step.report.message, _load_id(inp, step))
            change = outbox.add(change, entry)
    waits = (step.wake_after, outbox.wake_after(change.entries, inp.observed.in_flight, inp.now))
    return Act(
        why=step.report.message,
        status=status_after(inp, step, change),
        job=step.job,
        events=(*_events(inp, step), *change.events),
        calls=_calls(inp, outbox.due(change.entries, inp.observed.in_flight, inp.now)),
        recorded=inp.observed.deliveries,
        ended=_outcome(inp, step),
        wake_after=min((wait for wait in waits if wait is not None), default=None),
    )


def _release(inp: Input, why: str) -> Release:
    change = _recorded(inp)
    deleted = _entry(inp, WebhookEvent.DELETED, why)
    entries = outbox.without_obsolete(change.entries, deleted)
    due = outbox.due(entries, inp.observed.in_flight, inp.now)
    event = EventPlan(EventType.NORMAL, EventReason.MODEL_DELETED, why)
    job = inp.observed.cleanup_job
    recorded = () if job is None or job.deleting else (job,)
    return Release(
        why,
        jobs=(*recorded, *inp.observed.other_cleanups),
        events=(event, *change.events),
        calls=_calls(inp, (*due, deleted)),
    )


def _recorded(inp: Input) -> OutboxChange:
    """Record the webhook calls that finished since the last pass, and return the changed outbox.

    The outbox is empty if the model has no webhook.
    """
    if inp.webhook is None:
        return OutboxChange(())
    before = inp.status.webhook or WebhookStatus()
    return outbox.record(
        before.outbox,
        inp.observed.deliveries,
        inp.settings.webhook_retry_seconds,
        newest_ended=before.newest_ended,
    )


def _webhook_events(inp: Input, step: Proceed) -> list[WebhookEvent]:
    """Return the webhook events of a step, the earliest first."""
    events = [WebhookEvent.LOAD_STARTED] if _is_first_of_load(inp, step) else []
    match step.load:
        case LoadSucceeded():
            events.append(WebhookEvent.LOADED)
        case LoadFailed() if not _has_failed_before(inp):
            events.append(WebhookEvent.LOAD_FAILED)
    return events


def _is_first_of_load(inp: Input, step: Proceed) -> bool:
    """Whether the load has begun and the status does not describe it yet."""
    begun = step.load is not None and not isinstance(step.load, LoadQueued)
    return begun and not inp.same_load


def _has_failed_before(inp: Input) -> bool:
    """Whether the status already reports a failure of this load."""
    return inp.same_load and inp.stalled is not None and inp.stalled not in NOT_OF_A_LOAD


def _load_id(inp: Input, step: Proceed) -> str:
    """Return a text that differs between the loads of one version: generation and start time.

    The start time alone is not enough: two loads may start within the same second, but then the
    generation of the spec differs.
    """
    started = "" if isinstance(step.load, LoadQueued | None) else times.stamp(step.load.start_time)
    return f"{inp.model.generation}/{started}"


def _entry(inp: Input, event: WebhookEvent, message: str, load: str = "") -> OutboxEntry:
    load_hash = inp.wanted or inp.status.load_hash or "0" * 16
    if event is WebhookEvent.LOAD_STARTED:
        message = "the load has started"
    return OutboxEntry(
        id=outbox.webhook_id(inp.model.uid, load_hash, event, load),
        event=event,
        load_hash=load_hash,
        message=message[:TEXT_MAX_LENGTH],
        created_time=times.stamp(inp.now),
    )


def _calls(inp: Input, due: tuple[OutboxEntry, ...]) -> tuple[WebhookCall, ...]:
    url, spec = inp.webhook, inp.model.spec
    if url is None or spec is None:
        return ()
    ref = spec.webhook_secret_ref
    return tuple(
        WebhookCall(entry, url, ref.name if ref else None, ref.key if ref else None)
        for entry in due
    )


def _events(inp: Input, step: Proceed) -> tuple[EventPlan, ...]:
    events = []
    first_of_load = _is_first_of_load(inp, step)
    if first_of_load:
        text = f"Loading {redact_url(inp.model.url)} as {inp.model.model_id}"
        events.append(EventPlan(EventType.NORMAL, EventReason.LOAD_STARTED, text))
        if carries_secret(inp.model.url):
            text = (
                "spec.url contains credentials, which everyone who may read this resource can see;"
                " move them to a Secret and name it in spec.credentialsSecretRef"
            )
            events.append(EventPlan(EventType.WARNING, EventReason.CREDENTIALS_IN_URL, text))
    report = step.report
    if isinstance(step.load, LoadSucceeded):
        text, dot, note = report.message.partition(". ")
        text = f"{text}, {step.load.artifact.size}{dot}{note}"
        events.append(EventPlan(EventType.NORMAL, EventReason.MODEL_LOADED, text))
    elif (event := missing.event(inp)) is not None:
        events.append(event)
    if isinstance(report.stalled, Failure) and report.reason is not Reason.ARTIFACT_MISSING:
        reason = report.stalled.reason
        if reason is not inp.stalled or first_of_load:
            text = f"{reason}: {report.message}"
            events.append(EventPlan(EventType.WARNING, _failure_event(inp), text))
    return tuple(events)


def _failure_event(inp: Input) -> EventReason:
    """Return the reason of the Event about a new failure."""
    if inp.deleting:
        return EventReason.CLEANUP_FAILED
    if missing.published_volume_is_lost(inp) is not None:
        return EventReason.ARTIFACT_MISSING
    return EventReason.MODEL_LOAD_FAILED


def _outcome(inp: Input, step: Proceed) -> LoadOutcome | None:
    load = step.load
    if not isinstance(load, LoadSucceeded | LoadFailed):
        return None
    seconds = max(0.0, (load.completion_time - load.start_time).total_seconds())
    stages = (("total", seconds), *_stages(inp, load.job.name))
    if isinstance(load, LoadFailed):
        return LoadOutcome("failed", load.failure.reason.value, stages)
    return LoadOutcome("loaded", "", stages, load.source.size_bytes or 0)


def _stages(inp: Input, job_name: str) -> tuple[tuple[str, float], ...]:
    """Return how many seconds each successful container of the Job's newest Pod ran."""
    job = inp.observed.load_job
    pods = inp.observed.pods_of(job) if job is not None and job.name == job_name else ()
    return tuple(
        (container.name, container.seconds)
        for container in (pods[0].containers if pods else ())
        if container.seconds is not None and container.exit_code == 0 and container.name in _STAGES
    )
