"""The webhook's outbox: which calls are owed, when each is due, what its outcomes mean. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sd_api.reasons import EventReason, WebhookReason
from sd_api.status import OUTBOX_MAX, OutboxEntry, WebhookEvent
from sd_operator.base import times
from sd_operator.resources.observed import Delivery, Outcome
from sd_operator.rules.decision import EventPlan, EventType

Entries = Sequence[OutboxEntry]

_REMEDIES = {
    Outcome.FAILED: "Check spec.webhook, and that its host answers POST requests with 2xx.",
    Outcome.GONE: "Set spec.webhook to a receiver that accepts calls, or remove it.",
    Outcome.UNSIGNED: "Create the Secret that spec.webhookSecretRef names, with a key of the form"
    " whsec_<base64>, and allow the operator to read it (a Role with get and resourceNames).",
}


@dataclass(frozen=True)
class News:
    """What finished calls change: the entries still owed, the condition, Events."""

    entries: tuple[OutboxEntry, ...]
    reason: WebhookReason | None = None
    message: str = ""
    events: tuple[EventPlan, ...] = ()


def webhook_id(uid: str, load_hash: str, event: WebhookEvent) -> str:
    """The webhook-id: the same over retries and restarts, another for every load and event."""
    digest = hashlib.sha256(f"{uid}/{load_hash}/{event}".encode()).hexdigest()
    return f"msg_{digest[:32]}"


def owe(news: News, entry: OutboxEntry) -> News:
    """Owe one more call; over the limit the oldest is given up."""
    if any(one.id == entry.id for one in news.entries):
        return news
    entries = (*news.entries, entry)
    given_up = tuple(
        _failed(f"{one.event} was not delivered, and {OUTBOX_MAX} calls after it wait: given up")
        for one in entries[:-OUTBOX_MAX]
    )
    message = f"{entry.event} is to be delivered"
    events = (*news.events, *given_up)
    return News(entries[-OUTBOX_MAX:], WebhookReason.DELIVERY_PENDING, message, events)


def due(entries: Entries, in_flight: frozenset[str], now: datetime) -> tuple[OutboxEntry, ...]:
    """The entries to call now, the oldest first."""
    return tuple(
        one for one in entries if one.id not in in_flight and _wait(one, now) <= timedelta()
    )


def wake_after(entries: Entries, in_flight: frozenset[str], now: datetime) -> float | None:
    """Seconds until the next entry is due; None where nothing but running calls is owed."""
    waits = [_wait(one, now) for one in entries if one.id not in in_flight]
    return max(0.0, min(waits).total_seconds()) if waits else None


def _wait(entry: OutboxEntry, now: datetime) -> timedelta:
    at = times.parse(entry.next_attempt_time)
    return at - now if at is not None else timedelta()


def note(entries: Entries, deliveries: Iterable[Delivery], schedule: Sequence[float]) -> News:
    """Take finished calls into account."""
    news = News(tuple(entries))
    for delivery in deliveries:
        entry = next((one for one in news.entries if one.id == delivery.id), None)
        if entry is not None:
            news = _note(news, entry, delivery, schedule)
    return news


def _note(news: News, entry: OutboxEntry, delivery: Delivery, schedule: Sequence[float]) -> News:
    others = tuple(one for one in news.entries if one.id != entry.id)
    if delivery.outcome is Outcome.DELIVERED:
        event = EventPlan(
            EventType.NORMAL, EventReason.WEBHOOK_DELIVERED, f"{entry.event} was delivered"
        )
        return News(
            others,
            WebhookReason.DELIVERED,
            f"{entry.event} was delivered",
            (*news.events, event),
        )
    remedy = _REMEDIES[delivery.outcome]
    retried = delivery.outcome is not Outcome.GONE and entry.attempts < len(schedule)
    text = f"{entry.event} was not delivered: {delivery.error}"
    if not retried:
        message = f"{text}; it is given up. {remedy}"
        entries, tell = others, True
    else:
        at = delivery.at + timedelta(seconds=max(schedule[entry.attempts], delivery.pause))
        message = f"{text}; next attempt at {times.stamp(at)}. {remedy}"
        tell = entry.attempts == 0
        again = entry.model_copy(
            update={
                "attempts": entry.attempts + 1,
                "next_attempt_time": times.stamp(at),
                "last_error": delivery.error[:256],
            }
        )
        entries = tuple(again if one.id == entry.id else one for one in news.entries)
    events = news.events
    if tell:
        events = (*events, _failed(message))
    unsigned = delivery.outcome is Outcome.UNSIGNED
    reason = WebhookReason.SECRET_NOT_READABLE if unsigned else WebhookReason.DELIVERY_FAILED
    return News(entries, reason, message, events)


def _failed(message: str) -> EventPlan:
    return EventPlan(EventType.WARNING, EventReason.WEBHOOK_DELIVERY_FAILED, message)
