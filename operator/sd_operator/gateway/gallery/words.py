"""The state of a model in sentences for people: the headline, conditions, Events. Pure.

Conditions and their messages are written for kubectl, with fields of the resource. A visitor of
the gallery knows the labels of its form and its buttons instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sd_api.humanize import duration
from sd_api.reasons import EventReason, Reason
from sd_api.status import Condition, ConditionType, Phase
from sd_api.wording import message_in_gallery
from sd_operator.base import times
from sd_operator.gateway.gallery import form, views
from sd_operator.resources.model import Model

_NOT_PROCESSED = (
    "The operator has not processed this model yet. If this does not change, check that the"
    " operator is running."
)
_SUSPENDED = "Loading is suspended. Resume it to load the model."
_PHASES = {
    Phase.PENDING: "The load is about to start.",
    Phase.QUEUED: "Other models load first. This model waits in the queue.",
    Phase.DOWNLOADING: "The loader downloads the source.",
    Phase.CONVERTING: "The loader converts the source to a diffusers folder.",
    Phase.VERIFYING: "The loader verifies the converted model and publishes it.",
    Phase.FAILED: "The load failed.",
    Phase.DELETING: "The model is being deleted; its files are removed first.",
}
_CONDITIONS: Mapping[tuple[str, str], str] = {
    (ConditionType.READY, "True"): "The model is published and can be opened",
    (ConditionType.READY, "False"): "The model cannot be opened",
    (ConditionType.RECONCILING, "True"): "A load is under way",
    (ConditionType.STALLED, "True"): "The last load failed or is stuck",
    (ConditionType.WEBHOOK_DELIVERED, "True"): "The webhook was called",
    (ConditionType.WEBHOOK_DELIVERED, "False"): "The webhook has not been called",
}
_EVENTS: Mapping[str, str] = {
    EventReason.LOAD_STARTED: "A load started",
    EventReason.CREDENTIALS_IN_URL: "The source contains a token or a password",
    EventReason.MODEL_LOADED: "The model was loaded",
    EventReason.MODEL_LOAD_FAILED: "A load failed",
    EventReason.MODEL_DELETED: "The model was deleted",
    EventReason.ARTIFACT_MISSING: "Published files are missing",
    EventReason.ARTIFACT_RESTORED: "The missing files are back",
    EventReason.CLEANUP_FAILED: "The files cannot be removed",
    EventReason.WEBHOOK_DELIVERED: "The webhook was called",
    EventReason.WEBHOOK_DELIVERY_FAILED: "The webhook could not be called",
}


@dataclass(frozen=True)
class Headline:
    """The state of a model in one sentence."""

    text: str
    remedy: str = ""
    """What the visitor can do about it; empty if nothing is wrong."""
    tone: str = ""
    """The CSS class; empty if nothing is wrong."""


@dataclass(frozen=True)
class ConditionView:
    """A condition in words."""

    words: str
    text: str
    """The condition as kubectl shows it."""
    message: str
    remedy: str
    tone: str
    ago: str


@dataclass(frozen=True)
class EventView:
    """An Event in words."""

    words: str
    """Empty if the Event is not one of the operator's."""
    reason: str
    message: str
    warning: bool
    ago: str


def headline(model: Model, now: datetime) -> Headline:
    """Return the state of a model in one sentence."""
    status = model.status
    phase = status.phase or Phase.PENDING
    stalled = views.find(status.conditions, ConditionType.STALLED)
    if stalled is None and model.deleted_at is not None:
        return Headline(_PHASES[Phase.DELETING])
    if stalled is not None:
        cause, remedy = _cause_and_remedy(stalled, model)
        before, after = _around_a_failure(model, phase, stalled)
        return Headline(_sentence(f"{before}{cause}{after}"), remedy, "bad")
    if model.spec is not None and model.spec.suspend and phase is not Phase.READY:
        return Headline(_SUSPENDED)
    if phase is Phase.READY and status.artifact is not None:
        return Headline(f"Loaded {ago(status.artifact.last_update_time, now)}.")
    if not status.conditions:
        return Headline(_NOT_PROCESSED)
    return Headline(_PHASES.get(phase, ""))


def _around_a_failure(model: Model, phase: Phase, stalled: Condition) -> tuple[str, str]:
    """Return the headline's words before and after the cause of a failure."""
    if phase is Phase.QUEUED or views.find(model.status.conditions, ConditionType.RECONCILING):
        return "The last attempt failed: ", " The load is tried again."
    if phase is Phase.READY and stalled.reason != Reason.ARTIFACT_MISSING:
        text = " The version that was loaded before can still be opened."
        return "The last load failed: ", text
    return "", ""


def conditions(model: Model, now: datetime) -> tuple[ConditionView, ...]:
    """Return all conditions, Stalled first.

    Ready repeats the message of Stalled: a repeated message is left out.
    """
    ordered = sorted(model.status.conditions, key=lambda item: item.type != ConditionType.STALLED)
    messages: set[str] = set()
    shown = []
    for condition in ordered:
        view = _condition(condition, model, now)
        if condition.message in messages:
            view = replace(view, message="", remedy="")
        messages.add(condition.message)
        shown.append(view)
    return tuple(shown)


def events(items: Iterable[Mapping[str, Any]], now: datetime) -> list[EventView]:
    """Return Events in words, in the same order."""
    return [
        EventView(
            words=_EVENTS.get(str(event.get("reason") or ""), ""),
            reason=str(event.get("reason") or ""),
            message=in_words(str(event.get("message") or "")),
            warning=event.get("type") == "Warning",
            ago=ago(event.get("lastTimestamp") or event.get("eventTime"), now),
        )
        for event in items
    ]


def in_words(message: str) -> str:
    """Return a message with the form's labels and the gallery's buttons in place of fields."""
    return message_in_gallery(message, form.label)


def ago(moment: object, now: datetime) -> str:
    """Return how long ago a time was; empty if it cannot be read."""
    parsed = times.parse(moment)
    return f"{duration(max(0, int((now - parsed).total_seconds())))} ago" if parsed else ""


def _sentence(text: str) -> str:
    """Return a text with a capital first letter if it begins with a, an, it, no or the.

    Other texts may begin with a name, a path or a link, whose case must stay.
    """
    return re.sub(r"^(?:a|an|it|no|the)\b", lambda word: word[0].capitalize(), text)


def _cause_and_remedy(condition: Condition, model: Model) -> tuple[str, str]:
    """Return a condition's message without its remedy, and the remedy, both in words.

    The operator's messages end with the remedy, which the page shows separately.
    """
    reason = Reason.parse(condition.reason)
    job = model.status.job.name if model.status.job else "NAME"
    remedy = reason.remedy_for(job) if reason else ""
    return in_words(condition.message.removesuffix(remedy).strip()), in_words(remedy)


def _condition(condition: Condition, model: Model, now: datetime) -> ConditionView:
    message, remedy = _cause_and_remedy(condition, model)
    good = (condition.status == "True") == (condition.type != ConditionType.STALLED)
    tone = "good" if good else "bad"
    if condition.type == ConditionType.RECONCILING or (not good and not remedy):
        tone = "busy"
    text = f"{condition.type} is {condition.status}: {condition.reason}"
    return ConditionView(
        words=_CONDITIONS.get((condition.type, condition.status), text),
        text=text,
        message=_sentence(message),
        remedy=remedy,
        tone=tone,
        ago=ago(condition.last_transition_time, now),
    )
