"""Which calls the outbox keeps after a newer load, and which call its condition describes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_api.status import ConditionType, OutboxEntry, WebhookEvent
from sd_operator.base.settings import WEBHOOK_RETRY_SECONDS
from sd_operator.resources.observed import Delivery, Outcome
from sd_operator.rules import conditions, outbox
from sd_operator.rules.decision import Act, Release
from tests.support.rules.decisions import (
    COMPLETE,
    FAILED,
    HOOK,
    OTHER,
    act,
    decided,
    observed,
    with_pod,
)
from tests.support.rules.deliveries import entry
from tests.support.rules.observed import (
    LOADED,
    NOW,
    UID,
    WANTED,
    answered,
    failed,
    job,
    loading,
    model,
    published,
)

STARTED, DONE, BROKEN, DELETED = WebhookEvent
EVENTS = {"started": STARTED, "loaded": DONE, "failed": BROKEN, "deleted": DELETED}


def call(text: str, **fields: Any) -> OutboxEntry:
    """Return the call for an event of load a or b, from a text such as `b loaded`."""
    load, event = text.split()
    load_hash = load * 16
    identity = {
        "load_hash": load_hash,
        "id": outbox.webhook_id(UID, load_hash, EVENTS[event]),
    }
    return entry(EVENTS[event]).model_copy(update=identity | fields)


def calls(text: str, **fields: Any) -> list[OutboxEntry]:
    """Return the calls that a text lists, separated by commas."""
    return [call(one, **fields) for one in text.split(", ") if one]


@pytest.mark.parametrize(
    ("owed", "newer", "kept"),
    [
        pytest.param("", "a started", "a started", id="the first"),
        pytest.param("a started", "a loaded", "a started, a loaded", id="the same load"),
        pytest.param(
            "a started, a failed", "a loaded", "a started, a failed, a loaded", id="retry"
        ),
        pytest.param("a started", "b started", "b started", id="another load starts"),
        pytest.param("a started, a loaded", "b started", "b started", id="loaded is dropped too"),
        pytest.param("a failed", "b started", "b started", id="failed is dropped too"),
        pytest.param("a failed", "b failed", "b failed", id="another load fails at once"),
        pytest.param("a loaded", "b loaded", "b loaded", id="another version is adopted"),
        pytest.param("a deleted", "b started", "a deleted, b started", id="a deletion is kept"),
        pytest.param(
            "a loaded, a deleted",
            "b started",
            "a deleted, b started",
            id="only the deletion is kept",
        ),
        pytest.param("a loaded", "b deleted", "b deleted", id="the model is deleted"),
        pytest.param(
            "a loaded",
            "a deleted",
            "a loaded, a deleted",
            id="the version that was loaded is deleted",
        ),
        pytest.param("b started, a loaded", "b loaded", "b started, b loaded", id="in any order"),
        pytest.param("b started", "a loaded", "a loaded", id="a load that is wanted again"),
    ],
)
def test_a_newer_event_replaces_the_calls_of_other_loads(owed: str, newer: str, kept: str) -> None:
    """Owed calls of other loads are dropped: a receiver needs to know the newest load only."""
    change = outbox.add(outbox.OutboxChange(tuple(calls(owed))), call(newer))
    assert list(change.entries) == calls(kept)
    assert (change.reason, change.events) == ("DeliveryPending", ())
    assert change.message == f"waiting for the delivery of {EVENTS[newer.split()[1]]}"


def test_a_dropped_call_that_failed_before_has_an_event() -> None:
    """The Event reports that the call is given up: the call's last Event announced an attempt."""
    owed = (*calls("a started", attempts=2), *calls("a loaded"))
    change = outbox.add(outbox.OutboxChange(owed), call("b started"))
    assert list(change.entries) == calls("b started")
    assert [event.message for event in change.events] == [
        "model.load_started was not delivered; a newer load has events, so it is given up"
    ]
    assert [event.reason for event in change.events] == ["WebhookDeliveryFailed"]


def test_an_event_that_is_owed_already_replaces_nothing() -> None:
    """Adding an event whose call is in the outbox already changes nothing."""
    owed = outbox.OutboxChange(tuple(calls("a started, b started")))
    assert outbox.add(owed, call("a started")) == owed


OK, NO, GONE = Outcome.DELIVERED, Outcome.FAILED, Outcome.GONE


def recorded(owed: list[OutboxEntry], *outcomes: tuple[str, Outcome]) -> outbox.OutboxChange:
    """Return the outbox after these calls ended, in this order, each in a pass of its own."""
    change = outbox.OutboxChange(tuple(owed))
    for text, outcome in outcomes:
        done = Delivery(call(text).id, outcome, "it answered 500", NOW)
        after = outbox.record(
            change.entries, [done], WEBHOOK_RETRY_SECONDS, newest_ended=change.newest_ended
        )
        reason, message = (
            (change.reason, change.message)
            if after.reason is None
            else (after.reason, after.message)
        )
        change = outbox.OutboxChange(after.entries, reason, message, (), after.newest_ended)
    return change


@pytest.mark.parametrize(
    ("outcomes", "condition", "kept"),
    [
        pytest.param([("a started", OK)], None, "a loaded", id="an older one is delivered"),
        pytest.param([("a started", NO)], None, "a started, a loaded", id="an older one fails"),
        pytest.param([("a started", GONE)], None, "a loaded", id="an older one is given up"),
        pytest.param([("a loaded", OK)], "Delivered", "a started", id="the newest is delivered"),
        pytest.param(
            [("a loaded", NO)], "DeliveryFailed", "a started, a loaded", id="the newest fails"
        ),
        pytest.param(
            [("a loaded", OK), ("a started", NO)],
            "Delivered",
            "a started",
            id="an older one fails after the newest was delivered",
        ),
        pytest.param(
            [("a loaded", GONE), ("a started", OK)],
            "DeliveryFailed",
            "",
            id="an older one is delivered after the newest was given up",
        ),
        pytest.param(
            [("a loaded", GONE), ("a started", NO), ("a started", OK)],
            "DeliveryFailed",
            "",
            id="also in a third pass",
        ),
        pytest.param(
            [("a loaded", NO), ("a started", OK), ("a loaded", OK)],
            "Delivered",
            "",
            id="the newest is repeated",
        ),
    ],
)
def test_the_condition_is_about_the_newest_event(
    outcomes: list[tuple[str, Outcome]], condition: str | None, kept: str
) -> None:
    """The outcome of an older call is reported by an Event only."""
    change = recorded(calls("a started, a loaded"), *outcomes)
    assert change.reason == condition
    assert [owed.id for owed in change.entries] == [owed.id for owed in calls(kept)]
    if condition is not None:
        assert change.message.startswith("model.loaded was ")


def test_outcomes_of_one_pass_are_recorded_in_any_order() -> None:
    """The newest event decides the condition, whichever call ended first."""
    started, loaded = calls("a started, a loaded")
    ended = [Delivery(loaded.id, OK, "", NOW), Delivery(started.id, NO, "it answered 500", NOW)]
    for deliveries in (ended, ended[::-1]):
        change = outbox.record([started, loaded], deliveries, WEBHOOK_RETRY_SECONDS)
        assert (change.reason, change.newest_ended) == ("Delivered", True)
        assert [owed.id for owed in change.entries] == [started.id]
        assert {event.reason for event in change.events} == {
            "WebhookDelivered",
            "WebhookDeliveryFailed",
        }


def test_a_new_event_is_the_newest_again() -> None:
    """The condition becomes DeliveryPending, although the previous newest call was delivered."""
    after = recorded(calls("a started, a failed"), ("a failed", OK))
    assert after.newest_ended
    again = outbox.add(after, call("a loaded"))
    assert (again.reason, again.newest_ended) == ("DeliveryPending", False)


# The same rules, tested by whole decisions.


def owing(status: dict[str, Any], *owed: OutboxEntry, **webhook: Any) -> dict[str, Any]:
    """Return a status with these calls in its outbox."""
    entries = [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in owed]
    return status | {"webhook": {"outbox": entries} | webhook}


def of_load(load_hash: str, *events: WebhookEvent, **fields: Any) -> list[OutboxEntry]:
    """Return the calls of these events of a load."""
    return [
        entry(event).model_copy(
            update={"id": outbox.webhook_id(UID, load_hash, event), "load_hash": load_hash} | fields
        )
        for event in events
    ]


def pending(decision: Act) -> list[tuple[str, str]]:
    """Return load and event of each call that waits after a decision."""
    webhook = decision.status.webhook
    return [(one.load_hash, one.event) for one in webhook.outbox] if webhook else []


@pytest.mark.parametrize(
    ("seen", "events"),
    [
        pytest.param(observed(), [STARTED], id="starts"),
        pytest.param(
            with_pod(job(COMPLETE, load_hash=OTHER), answered("convert", LOADED)),
            [STARTED, DONE],
            id="is loaded",
        ),
        pytest.param(
            with_pod(
                job(FAILED, load_hash=OTHER), answered("fetch", failed(Reason.SOURCE_NOT_FOUND))
            ),
            [STARTED, BROKEN],
            id="fails",
        ),
    ],
)
def test_a_reload_drops_the_calls_of_the_previous_load(
    seen: Any, events: list[WebhookEvent]
) -> None:
    """Only the calls of the new load are pending, and they are due at once."""
    status = owing(published(), *of_load(WANTED, STARTED, DONE))
    decision = act(model(status, generation=2, revision="fp16", webhook=HOOK), seen)
    assert pending(decision) == [(OTHER, event) for event in events]
    assert [one.entry.event for one in decision.calls] == events


@pytest.mark.parametrize(
    ("before", "again"),
    [
        pytest.param(
            act(model(webhook=HOOK), observed()),
            act(model(published(OTHER), webhook=HOOK, generation=3), observed()),
            id="another version was served in the meantime",
        ),
        pytest.param(
            *(
                act(
                    model(loading(started_ago=ago), webhook=HOOK),
                    with_pod(job(COMPLETE), answered("convert", LOADED)),
                )
                for ago in (600, 60)
            ),
            id="the volume was lost and the same version is loaded again",
        ),
        pytest.param(
            *(
                act(
                    model(loading(started_ago=ago), webhook=HOOK),
                    with_pod(job(FAILED), answered("fetch", failed(Reason.SOURCE_NOT_FOUND))),
                )
                for ago in (600, 60)
            ),
            id="the same version fails once more",
        ),
    ],
)
def test_each_load_of_a_version_has_ids_of_its_own(before: Act, again: Act) -> None:
    """Two loads of the same version have different ids: a receiver ignores an id that it knows."""
    (first,), (second,) = before.calls, again.calls
    assert (first.entry.event, first.entry.load_hash) == (second.entry.event, WANTED)
    assert first.entry.id != second.entry.id


def test_a_suspended_reload_drops_no_calls() -> None:
    """The calls of the previous load stay owed while the new load has not started."""
    status = owing(published(), *of_load(WANTED, STARTED, DONE))
    changed = model(status, generation=2, revision="fp16", webhook=HOOK, suspend=True)
    decision = act(changed, observed())
    assert pending(decision) == [(WANTED, STARTED), (WANTED, DONE)]


def test_deleted_replaces_the_calls_of_another_load() -> None:
    """Owed calls are dropped if they are about another version than the deleted model's spec.

    Other owed calls are made together with the call for `model.deleted`.
    """
    status = owing(published(), *of_load(WANTED, DONE))
    gone = model(status, revision="fp16", webhook=HOOK, deleted_ago=1, deletionPolicy="Delete")
    kept = model(status, webhook=HOOK, deleted_ago=1)
    done = observed(job(COMPLETE, role="remove"))
    for resource, expected in ((gone, [DELETED]), (kept, [DONE, DELETED])):
        decision = decided(resource, done).decision
        assert isinstance(decision, Release), decision
        assert [one.entry.event for one in decision.calls] == expected


def test_the_status_remembers_that_the_newest_event_has_ended() -> None:
    """The status keeps newestEnded, so an older call that ends later changes no condition."""
    started, loaded = of_load(WANTED, STARTED, DONE, attempts=1)
    ended = Delivery(loaded.id, OK, "", NOW)
    resource = model(owing(published(), started, loaded), webhook=HOOK)
    first = act(resource, observed(deliveries=(ended,)))
    assert first.status.webhook is not None
    assert first.status.webhook.newest_ended
    status = first.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    later = Delivery(started.id, NO, "it answered 500", NOW + timedelta(seconds=9))
    second = act(model(status, webhook=HOOK), observed(deliveries=(later,)))
    assert _condition(second) == _condition(first)
    assert _condition(first).reason == "Delivered"
    assert pending(second) == [(WANTED, STARTED)]


def _condition(decision: Act) -> Any:
    return conditions.find(decision.status.conditions, ConditionType.WEBHOOK_DELIVERED)
