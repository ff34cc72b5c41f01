"""The webhook's outbox: which calls are pending, when each is due, and their outcomes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sd_api.reasons import EventReason, WebhookReason
from sd_api.status import OUTBOX_MAX, OutboxEntry, WebhookEvent
from sd_operator.base import times
from sd_operator.resources.observed import Delivery, Outcome
from sd_operator.rules import conditions
from sd_operator.rules.decision import EventPlan, EventType

Entries = Sequence[OutboxEntry]

_REMEDIES = {
    Outcome.FAILED: "Check spec.webhook, and that its host answers POST requests with 2xx.",
    Outcome.GONE: "Set spec.webhook to a receiver that accepts calls, or remove it.",
    Outcome.UNSIGNED: "Create the Secret that spec.webhookSecretRef names, with a key of the form"
    " whsec_<base64>, and allow the operator to read it (a Role with get and resourceNames).",
}


@dataclass(frozen=True)
class OutboxChange:
    """The outbox after a pass, with the condition and the Events that report the change."""

    entries: tuple[OutboxEntry, ...]
    """The pending calls, the oldest first."""
    reason: WebhookReason | None = None
    """The reason of the condition WebhookDelivered; None leaves the condition as it is."""
    message: str = ""
    """The message of the condition WebhookDelivered."""
    events: tuple[EventPlan, ...] = ()
    """The Events to emit."""
    newest_ended: bool = False
    """Whether the call of the newest event was delivered or given up. If so, only older calls are
    pending, and they do not change the condition."""


def webhook_id(uid: str, load_hash: str, event: WebhookEvent, load: str = "") -> str:
    """Return the webhook-id. Each event of each load has another id; retries and restarts keep it.

    load: tells loads of the same version apart; empty for the deletion of the model.
    """
    digest = hashlib.sha256(f"{uid}/{load_hash}/{load}/{event}".encode()).hexdigest()
    return f"msg_{digest[:32]}"


def add(change: OutboxChange, entry: OutboxEntry) -> OutboxChange:
    """Add a pending call, and drop the calls that it makes obsolete.

    If that exceeds the limit of the status, give up the oldest call.
    """
    if any(owed.id == entry.id for owed in change.entries):
        return change
    kept = without_obsolete(change.entries, entry)
    dropped = tuple(
        _failed(f"{owed.event} was not delivered; a newer load has events, so it is given up")
        for owed in change.entries
        # Only if an attempt has failed, since an Event then announced another one. A call without
        # a failed attempt may still arrive.
        if owed not in kept and owed.attempts
    )
    entries = (*kept, entry)
    given_up = tuple(
        _failed(f"{owed.event} was not delivered; {OUTBOX_MAX} newer calls wait, so it is given up")
        for owed in entries[:-OUTBOX_MAX]
    )
    message = f"waiting for the delivery of {entry.event}"
    events = (*change.events, *dropped, *given_up)
    return OutboxChange(entries[-OUTBOX_MAX:], WebhookReason.DELIVERY_PENDING, message, events)


def without_obsolete(entries: Entries, newer: OutboxEntry) -> tuple[OutboxEntry, ...]:
    """Return the entries that the entry `newer` does not make obsolete.

    They are the entries with the loadHash of `newer`, and deletions.
    """
    return tuple(
        entry
        for entry in entries
        if entry.load_hash == newer.load_hash or entry.event is WebhookEvent.DELETED
    )


def due(entries: Entries, in_flight: frozenset[str], now: datetime) -> tuple[OutboxEntry, ...]:
    """Return the entries to call now, the oldest first."""
    return tuple(
        entry
        for entry in entries
        if entry.id not in in_flight and _delay(entry, now) <= timedelta()
    )


def wake_after(entries: Entries, in_flight: frozenset[str], now: datetime) -> float | None:
    """Return the seconds until a call is due, 0 if one is due; None if no call is left to make."""
    delays = [_delay(entry, now) for entry in entries if entry.id not in in_flight]
    return max(0.0, min(delays).total_seconds()) if delays else None


def _delay(entry: OutboxEntry, now: datetime) -> timedelta:
    at = times.parse(entry.next_attempt_time)
    return at - now if at is not None else timedelta()


def record(
    entries: Entries,
    deliveries: Iterable[Delivery],
    schedule: Sequence[float],
    *,
    newest_ended: bool = False,
) -> OutboxChange:
    """Return the outbox after some calls have finished: without those that need no other attempt.

    Only the call of the newest event changes the condition. It is the last entry, unless
    `newest_ended` is true. schedule: the pause in seconds after each failed attempt.
    """
    change = OutboxChange(tuple(entries), newest_ended=newest_ended)
    for delivery in deliveries:
        entry = next((owed for owed in change.entries if owed.id == delivery.id), None)
        if entry is not None:
            change = _record_one(change, entry, delivery, schedule)
    return change


def _record_one(
    change: OutboxChange, entry: OutboxEntry, delivery: Delivery, schedule: Sequence[float]
) -> OutboxChange:
    others = tuple(owed for owed in change.entries if owed.id != entry.id)
    if delivery.outcome is Outcome.DELIVERED:
        message = f"{entry.event} was delivered"
        event = EventPlan(EventType.NORMAL, EventReason.WEBHOOK_DELIVERED, message)
        after = OutboxChange(others, WebhookReason.DELIVERED, message, (*change.events, event))
        return _about_the_newest(change, entry, after)
    remedy = _REMEDIES[delivery.outcome]
    is_retried = delivery.outcome is not Outcome.GONE and entry.attempts < len(schedule)
    text = f"{entry.event} was not delivered: {delivery.error}."
    if not is_retried:
        message = conditions.fit(text, f"The call is given up. {remedy}")
        entries, is_event = others, True
    else:
        at = delivery.at + timedelta(seconds=max(schedule[entry.attempts], delivery.pause))
        message = conditions.fit(text, f"The next attempt is at {times.stamp(at)}. {remedy}")
        is_event = entry.attempts == 0
        again = entry.model_copy(
            update={
                "attempts": entry.attempts + 1,
                "next_attempt_time": times.stamp(at),
                "last_error": delivery.error[:256],
            }
        )
        entries = tuple(again if owed.id == entry.id else owed for owed in change.entries)
    unsigned = delivery.outcome is Outcome.UNSIGNED
    reason = WebhookReason.SECRET_NOT_READABLE if unsigned else WebhookReason.DELIVERY_FAILED
    events = (*change.events, _failed(message)) if is_event else change.events
    return _about_the_newest(change, entry, OutboxChange(entries, reason, message, events))


def _about_the_newest(
    before: OutboxChange, entry: OutboxEntry, after: OutboxChange
) -> OutboxChange:
    """Return `after`, but with the condition of `before` unless the entry is the newest event's."""
    if before.newest_ended or entry.id != before.entries[-1].id:
        return replace(
            after,
            reason=before.reason,
            message=before.message,
            newest_ended=before.newest_ended,
        )
    is_pending = any(owed.id == entry.id for owed in after.entries)
    return replace(after, newest_ended=not is_pending)


def _failed(message: str) -> EventPlan:
    return EventPlan(EventType.WARNING, EventReason.WEBHOOK_DELIVERY_FAILED, message)
