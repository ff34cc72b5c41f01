"""Calls webhooks as Standard Webhooks specifies (https://www.standardwebhooks.com).

The url comes from the user, so the guard decides which hosts are called. A redirect is a failure.
Only the status code and Retry-After of the response are read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from sd_api import names
from sd_api.choices import UNKNOWN_TYPE
from sd_api.netguard import AddressRefusedError, Guard
from sd_api.redaction import redact_url
from sd_api.status import OutboxEntry, Status, WebhookEvent
from sd_operator.base.errors import ApiError, ForbiddenError, NotFoundError, SigningKeyError
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.http import Outgoing
from sd_operator.resources.model import Model
from sd_operator.resources.observed import Delivery, Outcome
from sd_operator.rules.decision import WebhookCall

TIMEOUT_SECONDS = 10.0
CONCURRENT_CALLS = 16
PAUSE_MAX_SECONDS = 24 * 3600.0
KEY_PREFIX = "whsec_"

ReadSecret = Callable[[str, str], Awaitable[dict[str, Any]]]
"""Reads one Secret, by namespace and name."""
_Answer = tuple[Outcome, str, float]
"""How a call ended: outcome, error, and the pause in seconds that the receiver asks for."""


def parse_key(text: str) -> bytes:
    """Return the bytes of a signing key; raise SigningKeyError unless it is whsec_<base64>."""
    try:
        key = base64.b64decode(text.strip().removeprefix(KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key or not text.strip().startswith(KEY_PREFIX):
        raise SigningKeyError(f"the key does not have the form {KEY_PREFIX}<base64>")
    return key


def signature(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header webhook-signature."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def payload(model: Model, status: Status, entry: OutboxEntry) -> dict[str, Any]:
    """Return the body of a call; it has the artifact if the event is about the artifact's load."""
    artifact = status.artifact
    if artifact is not None and artifact.load_hash != entry.load_hash:
        artifact = None
    return {
        "status": "error" if entry.event is WebhookEvent.LOAD_FAILED else "success",
        "event": entry.event.value,
        "model_id": model.model_id,
        "message": entry.message,
        "model": {
            "namespace": model.namespace,
            "name": model.name,
            "uid": model.uid,
            "model_type": status.model_type or UNKNOWN_TYPE,
            "url": redact_url(model.url),
            "load_hash": entry.load_hash,
            "artifact": artifact.model_dump(mode="json", exclude_none=True) if artifact else None,
        },
    }


class Webhooks:
    """Makes a bounded number of calls at a time; used and closed on one event loop."""

    def __init__(
        self,
        settings: Settings,
        guard: Guard,
        read_secret: ReadSecret,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._read_secret = read_secret
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS)
        self._outgoing = Outgoing(
            guard,
            TIMEOUT_SECONDS,
            settings.own_proxy,
            settings.no_proxy,
            settings.webhook_ca_file,
        )

    async def close(self) -> None:
        """End all connections."""
        await self._outgoing.close()

    async def deliver(self, call: WebhookCall, model: Model, status: Status) -> Delivery:
        """Make one call; a failure is returned, never raised."""
        body = json.dumps(payload(model, status, call.entry), separators=(",", ":")).encode()
        async with self._slots:
            try:
                key = await self._key(call, model.namespace)
                outcome, error, pause = await self._post(call, key, body)
            except SigningKeyError as problem:
                outcome, error, pause = Outcome.UNSIGNED, str(problem), 0.0
            except ApiError as problem:
                error = f"the signing key could not be read: {problem}"
                outcome, pause = Outcome.FAILED, 0.0
        return Delivery(call.entry.id, outcome, error, self._clock.now(), pause)

    async def _key(self, call: WebhookCall, namespace: str) -> bytes | None:
        if call.secret_name is None or call.secret_key is None:
            return self._default_key()
        where = f"key {call.secret_key} of Secret {namespace}/{call.secret_name}"
        try:
            secret = await self._read_secret(namespace, call.secret_name)
            data = secret.get("data") or {}
            return parse_key(base64.b64decode(data[call.secret_key]).decode())
        except (NotFoundError, ForbiddenError) as problem:
            raise SigningKeyError(f"{where}: {problem}") from None
        except KeyError:
            raise SigningKeyError(f"{where} does not exist") from None
        except (ValueError, SigningKeyError):
            raise SigningKeyError(f"{where} does not have the form {KEY_PREFIX}<base64>") from None

    def _default_key(self) -> bytes | None:
        path = self._settings.webhook_key_file
        if path is None:
            return None
        try:
            return parse_key(path.read_text())
        except (OSError, UnicodeDecodeError, SigningKeyError) as problem:
            raise SigningKeyError(f"the operator's webhook key file: {problem}") from None

    async def _post(self, call: WebhookCall, key: bytes | None, body: bytes) -> _Answer:
        timestamp = int(self._clock.now().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": names.FIELD_MANAGER,
            "webhook-id": call.entry.id,
            "webhook-timestamp": str(timestamp),
        }
        if key is not None:
            headers["webhook-signature"] = signature(key, call.entry.id, timestamp, body)
        try:
            async with self._outgoing.call("POST", call.url, headers, body) as response:
                return _answer(response.status, response.headers)
        except AddressRefusedError as problem:
            return _failed(str(problem))
        except TimeoutError:
            return _failed(f"no answer within {TIMEOUT_SECONDS:.0f} s")
        except aiohttp.ClientConnectorError as problem:
            return _failed(f"no connection: {problem.os_error}")
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            # The texts of other errors may contain the url, and its query may be a secret.
            return _failed(f"no connection: {type(problem).__name__}")


def _answer(status: int, headers: Mapping[str, str]) -> _Answer:
    if 200 <= status < 300:
        return Outcome.DELIVERED, "", 0.0
    if status == 410:
        return Outcome.GONE, "it answered 410 Gone", 0.0
    if 300 <= status < 400:
        return _failed(f"it answered {status}; redirects are not followed")
    wanted = headers.get("Retry-After", "")
    pause = float(wanted[:9]) if wanted.isdecimal() else 0.0
    return Outcome.FAILED, f"it answered {status}", min(pause, PAUSE_MAX_SECONDS)


def _failed(error: str) -> _Answer:
    return Outcome.FAILED, error, 0.0
