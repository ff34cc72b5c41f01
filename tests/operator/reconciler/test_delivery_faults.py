"""Webhooks under faults: the newest load's events arrive, each under one id; Ready never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from devkit.webhook_receiver import WebhookReceiver
from sd_api import netguard
from sd_api.netguard import Guard
from sd_operator.base.errors import ForbiddenError, UnavailableError
from sd_operator.base.settings import WEBHOOK_RETRY_SECONDS, Settings
from sd_operator.reconciler import delivery
from sd_operator.standalone import pki
from tests.support.operator.webhookstage import Stage, allowing, endless, nobody, play
from tests.support.rules.observed import NOW
from tests.support.tally import Tally

KEYS = ("whsec_YSBrZXkgb2Ygc2V2ZW50ZWVuIGIu", "whsec_YW5vdGhlciBrZXkgb2YgMjYgYnl0ZXM=")
FAULTS = "webhook faults survived"


def test_a_call_is_dropped_after_three_days_of_failures(tally: Tally) -> None:
    """An Event reports the dropped call. The model is Ready during the three days."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        for attempts, pause in enumerate(WEBHOOK_RETRY_SECONDS, start=1):
            await stage.tried(attempts)
            assert stage.ready
            stage.let_pass(pause)
        await stage.until(lambda: not stage.outbox)

    with nobody() as host:
        stage = play(scenario, f"http://{host}/x", allowed_hosts=allowing(host))
    assert stage.moment - NOW > timedelta(days=2.9)
    assert stage.api.conditions["WebhookDelivered"] == "DeliveryFailed"
    assert stage.ready
    # Each of the two calls emits the Event at its first and at its last attempt.
    assert stage.api.reasons["WebhookDeliveryFailed"] == 4
    tally(FAULTS)


@pytest.mark.parametrize("status", [302, 404, 429, 500, 503])
def test_a_receiver_that_fails_for_hours_gets_the_call_later(status: int, tally: Tally) -> None:
    """Every failure except 410 is retried under the same id."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        for attempts, pause in enumerate(WEBHOOK_RETRY_SECONDS[:6], start=1):
            await stage.tried(attempts)
            stage.let_pass(pause)
        await stage.tried(7)
        receiver.status = 204
        stage.let_pass(WEBHOOK_RETRY_SECONDS[6])
        await stage.told()

    headers = {"Location": "http://127.0.0.1/elsewhere"}
    with WebhookReceiver(status=status, headers=headers) as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert stage.moment - NOW > timedelta(days=0.7)
    assert {call.id for call in receiver.calls} == stage.ids
    assert len(receiver.calls) == 2 * 8
    tally(FAULTS)


def test_a_call_with_status_410_is_not_repeated(tally: Tally) -> None:
    """After status 410, the receiver gets no further call about the event, even days later."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.until(lambda: not stage.outbox)
        stage.let_pass(4 * 86400)
        await asyncio.sleep(0.1)

    with WebhookReceiver(status=410) as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert sorted(call.id for call in receiver.calls) == sorted(stage.ids)
    assert stage.api.conditions["WebhookDelivered"] == "DeliveryFailed"
    tally(FAULTS)


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        pytest.param("3600", 3600, id="an hour"),
        pytest.param("1", WEBHOOK_RETRY_SECONDS[0], id="less than the schedule"),
        pytest.param("9" * 400, delivery.PAUSE_MAX_SECONDS, id="for ever"),
        pytest.param("soon", WEBHOOK_RETRY_SECONDS[0], id="no number"),
    ],
)
def test_a_receiver_may_ask_for_a_pause(asked: str, waited: float, tally: Tally) -> None:
    """A Retry-After that exceeds the scheduled delay is honoured, up to a day."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)
        receiver.status = 204
        stage.let_pass(waited - 1)
        await asyncio.sleep(0.1)
        assert len(receiver.calls) == 2
        stage.let_pass(1)
        await stage.told()

    with WebhookReceiver(status=429, headers={"Retry-After": asked}) as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert {call.id for call in receiver.calls} == stage.ids
    tally(FAULTS)


def test_a_slow_receiver_delays_nothing_else(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    """If the reply comes too late, the operator calls the receiver again under the same id."""
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 0.2)

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)
        assert all("no answer within" in one["lastError"] for one in stage.outbox)
        receiver.seconds = 0
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.told()

    with WebhookReceiver(seconds=0.5) as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert len(receiver.calls) == 4
    assert {call.id for call in receiver.calls} == stage.ids
    tally(FAULTS)


def test_ready_comes_while_a_call_hangs(tally: Tally) -> None:
    """The model becomes Ready, and the operator can stop, without waiting for the call."""

    async def scenario(stage: Stage) -> None:
        await stage.until(lambda: len(receiver.calls) == 1)
        await stage.load()
        assert [one.get("attempts", 0) for one in stage.outbox] == [0, 0]

    with WebhookReceiver(seconds=1) as receiver:
        play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    tally(FAULTS)


def test_an_endless_body_is_not_read(tally: Tally) -> None:
    """The call is delivered by its status code; the operator does not read the body."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.told()

    with endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536) as host:
        play(scenario, f"http://{host}/x", allowed_hosts=allowing(host))
    tally(FAULTS)


def test_endless_headers_are_a_failure(tally: Tally) -> None:
    """The operator stops reading headers at a limit, and the attempt counts as failed."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)

    with endless(b"HTTP/1.1 200 OK\r\n", b"X-Pad: " + b"x" * 4000 + b"\r\n") as host:
        stage = play(scenario, f"http://{host}/x", allowed_hosts=allowing(host))
    assert all("no connection" in one["lastError"] for one in stage.outbox)
    tally(FAULTS)


@pytest.mark.parametrize("speaks_tls", [True, False], ids=["another authority", "no TLS"])
def test_a_receiver_with_wrong_tls_is_a_failure(
    speaks_tls: bool, tmp_path: Path, tally: Tally
) -> None:
    """The receiver gets no call. After spec.webhook is edited, the new receiver gets all calls."""
    _, certificate = pki.make_certificates()
    context = certificate.server_context(tmp_path) if speaks_tls else None

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)
        assert stage.api.conditions["WebhookDelivered"] == "DeliveryFailed"
        assert wrong.calls == []
        stage.edit(webhook=right.url)
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.told()

    with WebhookReceiver(tls=context) as wrong, WebhookReceiver() as right:
        hosts = allowing(wrong.host, right.host)
        stage = play(scenario, f"https://{wrong.host}/x", allowed_hosts=hosts)
    assert {call.id for call in right.calls} == stage.ids
    tally(FAULTS)


def test_a_host_name_with_a_private_address_is_not_called(
    monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """Each delivery fails without a connection.

    After spec.webhook is edited, the new receiver gets the owed calls.
    """

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)
        assert all("may not be called" in one["lastError"] for one in stage.outbox)
        assert receiver.calls == []
        assert stage.ready
        stage.edit(webhook=receiver.url)
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.told()

    with WebhookReceiver() as receiver:
        guard = Guard(allowing(receiver.host), resolver=lambda *_: ["127.0.0.1"])
        monkeypatch.setattr(Settings, "guard", lambda _: guard)
        port = receiver.host.rpartition(":")[2]
        monkeypatch.setattr(netguard, "PORTS", (int(port),))
        stage = play(scenario, f"https://hooks.example.com:{port}/x")
    assert len(receiver.calls) == 2
    assert {call.id for call in receiver.calls} == stage.ids
    tally(FAULTS)


def test_an_edited_webhook_gets_the_owed_calls(tally: Tally) -> None:
    """The calls keep the ids under which the previous webhook was called."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)
        stage.edit(webhook=new.url)
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.told()

    with WebhookReceiver(status=500) as old, WebhookReceiver() as new:
        hosts = allowing(old.host, new.host)
        stage = play(scenario, old.url, allowed_hosts=hosts)
    assert {call.id for call in old.calls} == {call.id for call in new.calls} == stage.ids
    tally(FAULTS)


def test_a_model_without_a_webhook_owes_no_calls(tally: Tally) -> None:
    """The outcome of a call that is already running is ignored."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.until(lambda: len(receiver.calls) == 2)
        stage.edit(webhook=None)
        await stage.until(lambda: "WebhookDelivered" not in stage.api.conditions)
        await asyncio.sleep(0.5)
        assert stage.outbox == []
        assert "WebhookDelivered" not in stage.api.conditions

    with WebhookReceiver(seconds=0.3) as receiver:
        play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    tally(FAULTS)


def test_a_rotated_key_signs_the_owed_calls(tmp_path: Path, tally: Tally) -> None:
    """After the key is changed, the next attempt of an owed call is signed with the new key."""
    key_file = tmp_path / "key"
    key_file.write_text(KEYS[0])

    async def scenario(stage: Stage) -> None:
        await stage.load()
        await stage.tried(1)
        assert all(call.verified for call in receiver.calls)
        key_file.unlink()
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.until(lambda: stage.api.conditions["WebhookDelivered"] == "SecretNotReadable")
        await stage.tried(2)
        key_file.write_text(KEYS[1])
        receiver.key, receiver.status = KEYS[1], 204
        stage.let_pass(WEBHOOK_RETRY_SECONDS[1])
        await stage.told()

    with WebhookReceiver(key=KEYS[0], status=500) as receiver:
        hosts = allowing(receiver.host)
        stage = play(scenario, receiver.url, allowed_hosts=hosts, webhook_key_file=key_file)
    assert len(receiver.calls) == 4, "without a key nothing is sent"
    assert all(call.verified for call in receiver.calls)
    assert {call.id for call in receiver.calls} == stage.ids
    tally(FAULTS)


def test_a_receiver_that_comes_back_is_called_about_the_newest_load(tally: Tally) -> None:
    """The receiver gets the calls of the newest load. Calls of earlier loads are dropped.

    An Event reports each dropped call.
    """

    async def scenario(stage: Stage) -> None:
        await stage.load()
        for number in range(1, 5):
            await stage.tried(1)
            await stage.load(reload=str(number))
        await stage.tried(1)
        owed.update(one["id"] for one in stage.outbox)
        receiver.status = 204
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.told()
        await stage.until(lambda: stage.api.reasons["WebhookDelivered"] == 2)

    owed: set[str] = set()
    with WebhookReceiver(status=503) as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert len(owed) == 2
    assert {call.id for call in receiver.calls[-2:]} == owed
    assert {call.body["model"]["load_hash"] for call in receiver.calls[-2:]} == {
        stage.jobs[-1].load_hash
    }
    assert owed < stage.ids == {call.id for call in receiver.calls}
    given_up = [text for _, text in stage.api.events if text.endswith("given up")]
    assert len(given_up) == 8
    tally(FAULTS)


AWAY = UnavailableError("the API server is away")


async def owed(stage: Stage, receiver: WebhookReceiver) -> None:
    """Wait until the call is recorded but not made yet."""
    stage.api.lost = AWAY
    await stage.until(lambda: stage.outbox)
    assert receiver.calls == []
    stage.api.lost = None


async def on_its_way(stage: Stage, receiver: WebhookReceiver) -> None:
    """Wait until the receiver has the call; its reply comes after the operator has ended."""
    receiver.seconds = 0.3
    await stage.until(lambda: receiver.calls)
    receiver.seconds = 0


async def failed(stage: Stage, receiver: WebhookReceiver) -> None:
    """Wait until the first attempt has failed and the call waits for its second."""
    receiver.status = 500
    await stage.until(lambda: stage.outbox and stage.outbox[0].get("attempts"))
    receiver.status = 204


async def delivered(stage: Stage, receiver: WebhookReceiver) -> None:
    """Let the call be made while its outcome cannot be recorded."""
    receiver.seconds = 0.1
    await stage.until(lambda: receiver.calls)
    stage.api.away = AWAY
    await asyncio.sleep(0.3)
    stage.api.away = None


@pytest.mark.parametrize(
    ("state", "calls"), [(owed, 1), (on_its_way, 2), (failed, 2), (delivered, 2)]
)
def test_a_restart_keeps_every_call_and_its_id(
    state: Callable[[Stage, WebhookReceiver], Coroutine[Any, Any, None]], calls: int, tally: Tally
) -> None:
    """The operator ends at a step of a call (`state`); the next one makes the call, with its id."""

    async def scenario(stage: Stage) -> None:
        await state(stage, receiver)
        assert len(stage.outbox) == 1
        await stage.restart()
        stage.let_pass(WEBHOOK_RETRY_SECONDS[0])
        await stage.told()
        started = [call.id for call in receiver.calls]
        assert len(started) == calls
        assert len(set(started)) == 1
        await stage.load()
        await stage.told()

    with WebhookReceiver() as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert {call.id for call in receiver.calls} == stage.ids
    tally(FAULTS)


def test_the_outcome_of_a_call_survives_a_rejected_job(tally: Tally) -> None:
    """A pass in which the Job is rejected does not record the outcome; a later pass does."""

    async def scenario(stage: Stage) -> None:
        await stage.load()
        stage.api.away = AWAY
        await asyncio.sleep(0.4)
        stage.api.away, stage.api.refuses = None, ForbiddenError("no Jobs today", 403)
        stage.edit(revision="fp16")
        await stage.told()
        assert "create jobs" in stage.api.asked[-4:]

    with WebhookReceiver(seconds=0.2) as receiver:
        stage = play(scenario, receiver.url, allowed_hosts=allowing(receiver.host))
    assert sorted(call.id for call in receiver.calls) == sorted(stage.ids)
    tally(FAULTS)
