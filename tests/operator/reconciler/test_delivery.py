from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from devkit.webhook_receiver import WebhookReceiver
from sd_api import netguard
from sd_api.netguard import Guard
from sd_api.status import OUTBOX_MAX, OutboxEntry, Status, WebhookEvent
from sd_operator.base import times
from sd_operator.base.errors import ForbiddenError, SigningKeyError
from sd_operator.base.settings import WEBHOOK_RETRY_SECONDS, Settings
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.reconciler import delivery
from sd_operator.reconciler.delivery import Webhooks
from sd_operator.resources.observed import Delivery, Outcome
from sd_operator.rules import outbox
from sd_operator.rules.decision import WebhookCall
from tests.support.rules.deliveries import entry, no_secret
from tests.support.rules.observed import NOW, UID, WANTED, model, published

KEY = "whsec_" + base64.b64encode(b"a key of twenty-six bytes.").decode()


def deliver(
    url: str,
    settings: Settings,
    read_secret: delivery.ReadSecret = no_secret,
    *,
    secret: tuple[str | None, str | None] = (None, None),
    guard: Guard | None = None,
) -> Delivery:
    """Call a webhook over real HTTP, and return the delivery."""

    async def run() -> Delivery:
        webhooks = Webhooks(settings, guard or settings.guard(), read_secret, SYSTEM_CLOCK)
        try:
            resource = model(published(), webhook=url)
            return await webhooks.deliver(
                WebhookCall(entry(), url, *secret), resource, resource.status
            )
        finally:
            await webhooks.close()

    return asyncio.run(run())


def allowing(receiver: WebhookReceiver, **settings: Any) -> Settings:
    """Return settings that allow calls to loopback."""
    return Settings(allowed_hosts=frozenset({receiver.host}), **settings)


def test_a_call_is_signed_as_standard_webhooks_says(tmp_path: Path) -> None:
    """The receiver verifies the signature, which is made with the operator's default key."""
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    with WebhookReceiver(key=KEY) as receiver:
        done = deliver(receiver.url, allowing(receiver, webhook_key_file=key_file))
    assert done.outcome is Outcome.DELIVERED
    (call,) = receiver.calls
    assert call.verified
    assert call.id == done.id == outbox.webhook_id(UID, WANTED, WebhookEvent.LOADED)
    assert call.body["status"] == "success"
    assert call.body["event"] == "model.loaded"
    assert call.body["model_id"] == "sketch"
    assert call.body["model"]["artifact"]["path"] == "sketch"


def test_without_a_key_calls_are_unsigned() -> None:
    """The call has the timestamp header but no signature header."""
    with WebhookReceiver() as receiver:
        assert deliver(receiver.url, allowing(receiver)).outcome is Outcome.DELIVERED
    headers = receiver.calls[0].headers
    assert "webhook-signature" not in headers
    assert "webhook-timestamp" in headers


def test_the_signature_is_that_of_the_specification() -> None:
    """The signature is a versioned base64 HMAC-SHA256 of id, timestamp and body."""
    expected = hmac.new(b"key", b'msg_1.1700000000.{"a":1}', hashlib.sha256).digest()
    signed = delivery.signature(b"key", "msg_1", 1_700_000_000, b'{"a":1}')
    assert signed == "v1," + base64.b64encode(expected).decode()


def secret_of(data: dict[str, str]) -> delivery.ReadSecret:
    """Return a function that reads a Secret with these keys."""

    async def read(namespace: str, name: str) -> dict[str, Any]:
        assert (namespace, name) == ("art", "hook")
        return {
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
        }

    return read


def test_a_models_own_key_signs() -> None:
    """If the model names a key, it signs the call instead of the operator's default key."""
    with WebhookReceiver(key=KEY) as receiver:
        settings = allowing(receiver, webhook_key_file=Path("/nowhere"))
        done = deliver(receiver.url, settings, secret_of({"k": KEY}), secret=("hook", "k"))
    assert done.outcome is Outcome.DELIVERED
    assert receiver.calls[0].verified


async def forbidden(namespace: str, name: str) -> dict[str, Any]:
    """Reject the request as RBAC does."""
    raise ForbiddenError(f'secrets "{name}" is forbidden in {namespace}', 403)


@pytest.mark.parametrize(
    ("read", "why"),
    [
        pytest.param(no_secret, "not found", id="no Secret"),
        pytest.param(forbidden, "is forbidden", id="no permission"),
        pytest.param(secret_of({}), "does not exist", id="no such key"),
        pytest.param(secret_of({"k": "plain"}), "whsec_<base64>", id="no prefix"),
        pytest.param(secret_of({"k": "whsec_%%%"}), "whsec_<base64>", id="no base64"),
        pytest.param(secret_of({"k": "whsec_"}), "whsec_<base64>", id="empty"),
    ],
)
def test_an_unreadable_key_sends_nothing(read: delivery.ReadSecret, why: str) -> None:
    """A call that should be signed is never sent unsigned, and no message shows the key."""
    with WebhookReceiver() as receiver:
        done = deliver(receiver.url, allowing(receiver), read, secret=("hook", "k"))
    assert receiver.calls == []
    assert done.outcome is Outcome.UNSIGNED
    assert why in done.error
    assert "key k of Secret art/hook" in done.error
    assert "plain" not in done.error


def test_an_unreadable_default_key_sends_nothing(tmp_path: Path) -> None:
    """The message names the setting of the key file."""
    with WebhookReceiver() as receiver:
        done = deliver(receiver.url, allowing(receiver, webhook_key_file=tmp_path / "nothing"))
    assert receiver.calls == []
    assert done.outcome is Outcome.UNSIGNED
    assert "webhook key file" in done.error


@pytest.mark.parametrize(
    ("status", "outcome", "error"),
    [
        (200, Outcome.DELIVERED, ""),
        (410, Outcome.GONE, "410"),
        (404, Outcome.FAILED, "404"),
        (500, Outcome.FAILED, "500"),
        (302, Outcome.FAILED, "redirects are not followed"),
    ],
)
def test_the_status_code_decides_the_outcome(status: int, outcome: Outcome, error: str) -> None:
    """2xx is delivered, 410 is final, and redirects are failures."""
    with WebhookReceiver(status=status, headers={"Location": "http://example.com/"}) as receiver:
        done = deliver(receiver.url, allowing(receiver))
    assert done.outcome is outcome
    assert error in done.error
    assert len(receiver.calls) == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        pytest.param("http://127.0.0.1/x", "over https only", id="plain http"),
        pytest.param("https://127.0.0.1/x", "not a public address", id="loopback"),
        pytest.param("https://169.254.169.254/x", "not a public address", id="metadata"),
        pytest.param("https://[::ffff:10.0.0.1]/x", "not a public address", id="mapped"),
        pytest.param("https://2130706433/x", "four decimal numbers", id="decimal spelling"),
        pytest.param("https://localhost/x", "private name", id="private name"),
    ],
)
def test_private_addresses_are_not_called(url: str, why: str) -> None:
    """The operator checks literal addresses itself, since aiohttp does not resolve them."""
    done = deliver(url, Settings())
    assert done.outcome is Outcome.FAILED
    assert why in done.error


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(["127.0.0.1"], id="private"),
        pytest.param(["93.184.215.14", "10.0.0.1"], id="one of two private"),
    ],
)
def test_names_of_private_addresses_are_not_called(
    answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook is not called if any address of its host name is private."""
    with WebhookReceiver() as receiver:
        port = receiver.host.rpartition(":")[2]
        monkeypatch.setattr(netguard, "PORTS", (int(port),))
        guard = Guard(resolver=lambda *_: answers)
        done = deliver(f"https://hooks.example.com:{port}/x", Settings(), guard=guard)
    assert receiver.calls == []
    assert done.outcome is Outcome.FAILED
    assert "not a public address" in done.error


def test_delivery_connects_to_the_checked_address() -> None:
    """The call connects to the address that the guard resolved, without a second look-up.

    The host name exists in the guard's resolver only.
    """
    with WebhookReceiver() as receiver:
        port = receiver.host.rpartition(":")[2]
        host = f"hooks.example.invalid:{port}"
        guard = Guard(frozenset({host}), resolver=lambda *_: ["127.0.0.1"])
        done = deliver(f"http://{host}/x", Settings(), guard=guard)
    assert done.outcome is Outcome.DELIVERED
    assert receiver.calls[0].headers["host"] == host


def test_behind_a_proxy_the_proxy_is_called() -> None:
    """The proxy gets the call and resolves the host name. Private names are still refused.

    A host in no_proxy is called without the proxy.
    """
    with WebhookReceiver() as proxy:
        settings = Settings(
            https_proxy=f"http://{proxy.host}", allowed_hosts=frozenset({"h.example"})
        )
        assert deliver("http://h.example/x", settings).outcome is Outcome.DELIVERED
        assert proxy.calls[0].headers["host"] == "h.example"
        assert "private name" in deliver("https://localhost/x", settings).error
        direct = replace(settings, no_proxy=".example", allowed_hosts=frozenset({"h.example"}))
        assert deliver("http://h.example/x", direct).outcome is Outcome.FAILED
    assert len(proxy.calls) == 1


def test_an_unreachable_receiver_is_a_failure() -> None:
    """The message shows the cause and nothing of the url's query."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        settings = Settings(allowed_hosts=frozenset({host}))
        done = deliver(f"http://{host}/x?token=secret", settings)
    assert done.outcome is Outcome.FAILED
    assert done.error.startswith("no connection: ")
    assert "secret" not in done.error


def test_a_silent_receiver_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call ends with an error after the timeout."""
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        done = deliver(f"http://{host}/x", Settings(allowed_hosts=frozenset({host})))
    assert done.outcome is Outcome.FAILED
    assert "no answer within" in done.error


def test_a_call_describes_only_the_artifact_of_its_own_load() -> None:
    """If the published artifact is that of another load, the call has no artifact."""
    resource = model(published("0" * 16), url="https://u:p@example.com/m.ckpt?token=t")
    body = delivery.payload(resource, resource.status, entry())
    assert body["model"]["artifact"] is None
    assert body["model"]["url"] == "https://example.com/m.ckpt?…"
    failed = delivery.payload(resource, Status(), entry(WebhookEvent.LOAD_FAILED))
    assert failed["status"] == "error"


def test_keys_are_parsed_strictly() -> None:
    """A key is whsec_<base64>, with optional white space around it."""
    assert delivery.parse_key(f" {KEY}\n") == b"a key of twenty-six bytes."
    with pytest.raises(SigningKeyError):
        delivery.parse_key(KEY.removeprefix("whsec_"))


# The outbox.


def news(*entries: OutboxEntry) -> outbox.OutboxChange:
    """Return an outbox with these events."""
    return outbox.OutboxChange(entries)


def test_ids_are_stable_and_differ_by_load_and_event() -> None:
    """Receivers recognise repeated calls by their id."""
    make: Callable[..., str] = outbox.webhook_id
    loads = [("a", "1/9:00"), ("a", "1/9:05"), ("b", "1/9:00")]
    ids = {make(UID, version, event, load) for version, load in loads for event in WebhookEvent}
    assert len(ids) == 3 * len(WebhookEvent)
    assert make(UID, "a", WebhookEvent.LOADED, "1/9:00") in ids


def test_an_event_is_owed_once() -> None:
    """An event of a load is added to the outbox only once."""
    once = outbox.add(news(), entry())
    assert once.reason == "DeliveryPending"
    assert outbox.add(once, entry()) == once


def test_the_outbox_is_bounded() -> None:
    """Beyond the limit, a new call replaces the oldest call."""
    box = news()
    for number in range(OUTBOX_MAX + 2):
        box = outbox.add(box, entry().model_copy(update={"id": str(number)}))
    assert [one.id for one in box.entries] == [str(n) for n in range(2, OUTBOX_MAX + 2)]


def test_a_call_is_due_at_its_time_unless_it_is_running() -> None:
    """Each entry of the outbox has its own time for the next attempt."""
    soon = entry(next_attempt_time=times.stamp(NOW + timedelta(seconds=30)))
    new = entry(WebhookEvent.LOAD_STARTED)
    assert outbox.due([soon, new], frozenset(), NOW) == (new,)
    assert outbox.due([soon, new], frozenset({new.id}), NOW) == ()
    assert outbox.due([soon], frozenset(), NOW + timedelta(seconds=30)) == (soon,)
    assert outbox.wake_after([soon], frozenset(), NOW) == 30
    assert outbox.wake_after([soon], frozenset({soon.id}), NOW) is None


def noted(before: OutboxEntry, outcome: Outcome) -> outbox.OutboxChange:
    """Return the outbox after a call with this outcome."""
    done = Delivery(before.id, outcome, "it answered 500", NOW)
    return outbox.record([before], [done], WEBHOOK_RETRY_SECONDS)


def test_a_delivered_call_is_no_longer_owed() -> None:
    """The call leaves the outbox; a condition and an Event report the delivery."""
    after = noted(entry(), Outcome.DELIVERED)
    assert after.entries == ()
    assert after.reason == "Delivered"
    assert [one.reason for one in after.events] == ["WebhookDelivered"]


def test_a_failed_call_is_tried_again_later() -> None:
    """Only the first failure makes an Event; its message has the time and the remedy."""
    after = noted(entry(), Outcome.FAILED)
    (again,) = after.entries
    assert (again.attempts, again.next_attempt_time) == (1, "2026-01-02T03:04:10Z")
    assert again.last_error == "it answered 500"
    assert again.id == entry().id
    assert after.reason == "DeliveryFailed"
    assert "The next attempt is at 2026-01-02T03:04:10Z. Check spec.webhook" in after.message
    assert [one.reason for one in after.events] == ["WebhookDeliveryFailed"]
    assert noted(again, Outcome.FAILED).events == ()


def test_a_long_error_does_not_push_the_remedy_out_of_the_message() -> None:
    """The error is cut; the time of the next attempt and the remedy are kept."""
    long = Delivery(entry().id, Outcome.FAILED, "x" * 2000, NOW)
    (message,) = {
        outbox.record([entry()], [long], WEBHOOK_RETRY_SECONDS).message,
        outbox.record([entry()], [long], WEBHOOK_RETRY_SECONDS).events[0].message,
    }
    assert len(message) == 1024
    assert "x… The next attempt is at 2026-01-02T03:04:10Z. Check spec.webhook" in message
    assert message.endswith("2xx.")


def test_a_call_is_tried_for_three_days() -> None:
    """After the last failure the call is dropped, and an Event reports it."""
    assert timedelta(days=2.9) < timedelta(seconds=sum(WEBHOOK_RETRY_SECONDS)) < timedelta(days=3)
    last = entry(attempts=len(WEBHOOK_RETRY_SECONDS))
    after = noted(last, Outcome.FAILED)
    assert after.entries == ()
    assert "given up" in after.message
    assert [one.reason for one in after.events] == ["WebhookDeliveryFailed"]


def test_status_410_is_final() -> None:
    """A call that gets status 410 is dropped at once, without another attempt."""
    after = noted(entry(), Outcome.GONE)
    assert (after.entries, after.reason) == ((), "DeliveryFailed")


def test_an_unreadable_key_is_reported_as_a_condition() -> None:
    """The condition's reason is SecretNotReadable. The call is retried: the Secret may appear."""
    after = noted(entry(), Outcome.UNSIGNED)
    assert after.reason == "SecretNotReadable"
    assert len(after.entries) == 1


def test_the_outcome_of_a_forgotten_call_changes_nothing() -> None:
    """An outbox that has dropped the entry of a running call stays as it is when the call ends."""
    done = Delivery("msg_other", Outcome.FAILED, "", NOW)
    assert outbox.record([entry()], [done], WEBHOOK_RETRY_SECONDS) == news(entry())
