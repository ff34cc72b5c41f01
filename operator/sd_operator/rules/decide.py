"""The decision: from a model and what is observed of it to a plan. Pure; the rules are elsewhere.

`loading.RULES` and `removal.RULES` are chains; the first rule that applies decides on a step, and
this module turns the step into the status to write and the Events and webhook calls it causes.
"""

from __future__ import annotations

from datetime import datetime

from sd_api import names
from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.reasons import EventReason
from sd_api.redaction import carries_secret, redact_url
from sd_api.status import OutboxEntry, WebhookEvent
from sd_operator.base import times
from sd_operator.base.settings import Settings
from sd_operator.resources.model import Model
from sd_operator.resources.observed import Observed
from sd_operator.rules import delete, load, outbox
from sd_operator.rules.decision import (
    Call,
    Ended,
    EventPlan,
    EventType,
    FinalizerChange,
    Plan,
)
from sd_operator.rules.input import Input, Standing, Step, status_after

_STAGES = frozenset({names.CONTAINER_FETCH, names.CONTAINER_CONVERT})


def plan(model: Model, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about a model now."""
    inp = Input(model, observed, settings, now)
    rules = delete.RULES if model.deleted_at is not None else load.RULES
    for rule in rules:
        step = rule(inp)
        if step is not None:
            return _plan(inp, step, rule.__name__)
    raise AssertionError("the last rule of a chain always applies")


def _plan(inp: Input, step: Step, rule: str) -> Plan:
    if step.look or step.hold or step.finalizer is FinalizerChange.ADD:
        return Plan(
            rule,
            inp.status,
            look=step.look,
            wants_turn=step.wants_turn,
            finalizer=step.finalizer,
            wake_after=step.wake_after,
        )
    news = _news(inp, step)
    if inp.deleting and (step.finalizer is not None or not inp.model.has_finalizer):
        status = inp.status  # the resource is about to be gone
    else:
        status = status_after(inp, step, news)
    waits = (step.wake_after, outbox.wake_after(news.entries, inp.observed.in_flight, inp.now))
    return Plan(
        rule,
        status,
        wants_turn=step.wants_turn,
        delete=step.delete,
        finalizer=step.finalizer,
        create=step.create,
        events=(*_events(inp, step), *news.events),
        calls=_calls(inp, step, news),
        ended=_ended(inp, step),
        noted=inp.observed.deliveries,
        wake_after=min((wait for wait in waits if wait is not None), default=None),
    )


def _news(inp: Input, step: Step) -> outbox.News:
    """The outbox after finished calls and with the new ones."""
    if inp.webhook is None:
        return outbox.News(())
    entries = inp.status.webhook.outbox if inp.status.webhook else ()
    news = outbox.note(entries, inp.observed.deliveries, inp.settings.webhook_retry_seconds)
    for event in step.notify:
        news = outbox.owe(news, _entry(inp, event, step.standing))
    return news


def _entry(inp: Input, event: WebhookEvent, standing: Standing) -> OutboxEntry:
    load_hash = inp.wanted or inp.status.load_hash or "0" * 16
    return OutboxEntry(
        id=outbox.webhook_id(inp.model.uid, load_hash, event),
        event=event,
        load_hash=load_hash,
        message="the load has started"
        if event is WebhookEvent.LOAD_STARTED
        else standing.message[:TEXT_MAX_LENGTH],
        created_time=times.stamp(inp.now),
    )


def _calls(inp: Input, step: Step, news: outbox.News) -> tuple[Call, ...]:
    url, spec = inp.webhook, inp.model.spec
    if url is None or spec is None:
        return ()
    due = outbox.due(news.entries, inp.observed.in_flight, inp.now)
    if step.released:
        due = (*due, _entry(inp, WebhookEvent.DELETED, step.standing))
    ref = spec.webhook_secret_ref
    return tuple(
        Call(entry, url, ref.name if ref else None, ref.key if ref else None) for entry in due
    )


def _events(inp: Input, step: Step) -> tuple[EventPlan, ...]:
    events = []
    if WebhookEvent.LOAD_STARTED in step.notify:
        text = f"Loading {redact_url(inp.model.url)} as {inp.model.model_id}"
        events.append(EventPlan(EventType.NORMAL, EventReason.LOAD_STARTED, text))
        if carries_secret(inp.model.url):
            text = (
                "spec.url carries credentials that everybody who may read this resource reads;"
                " put them into a Secret and name it in spec.credentialsSecretRef"
            )
            events.append(EventPlan(EventType.WARNING, EventReason.CREDENTIALS_IN_URL, text))
    if step.artifact is not None:
        text, dot, note = step.standing.message.partition(". ")
        text = f"{text}, {step.artifact.size}{dot}{note}"
        events.append(EventPlan(EventType.NORMAL, EventReason.MODEL_LOADED, text))
    stalled = step.standing.stalled
    first_of_load = step.load is not None and not inp.same_load
    if stalled is not None and (stalled.reason is not inp.stalled or first_of_load):
        text = f"{stalled.reason}: {step.standing.message}"
        kind = EventReason.CLEANUP_FAILED if inp.deleting else EventReason.MODEL_LOAD_FAILED
        events.append(EventPlan(EventType.WARNING, kind, text))
    if step.released:
        events.append(EventPlan(EventType.NORMAL, EventReason.MODEL_DELETED, step.released))
    return tuple(events)


def _ended(inp: Input, step: Step) -> Ended | None:
    load = step.load
    if not step.ended or load is None or load.completion_time is None:
        return None
    seconds = (load.completion_time - load.start_time).total_seconds()
    stages = (("total", max(0.0, seconds)), *_stages(inp, load.job.name))
    if step.standing.stalled is not None:
        return Ended("failed", step.standing.stalled.reason.value, stages)
    size = (step.source.size_bytes or 0) if step.source else 0
    return Ended("loaded", "", stages, size)


def _stages(inp: Input, job_name: str) -> tuple[tuple[str, float], ...]:
    """How long each container of a Job's newest Pod ran; what did not run well tells nothing."""
    job = next((one for one in inp.observed.jobs if one.name == job_name), None)
    pods = inp.observed.pods_of(job) if job is not None else ()
    return tuple(
        (one.name, one.seconds)
        for one in (pods[0].containers if pods else ())
        if one.seconds is not None and one.exit_code == 0 and one.name in _STAGES
    )
