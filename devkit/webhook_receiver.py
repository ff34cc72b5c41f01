"""A webhook receiver on loopback that verifies Standard Webhooks signatures.

For example:

    with WebhookReceiver(key=KEY) as receiver:
        deliver(receiver.url)
        assert receiver.calls[0].verified

The verification follows the specification (https://www.standardwebhooks.com) and shares no code
with the operator.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from devkit.loopback import Answer, Loopback, Request


@dataclass(frozen=True)
class Call:
    """A webhook call that was received."""

    id: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    verified: bool | None
    """Whether the signature is right; None if the call was not signed."""


@dataclass
class WebhookReceiver:
    """Receives calls until its context ends; tests may change the fields at any time."""

    key: str | None = None
    status: int = 204
    """The status of the responses."""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """How long a response takes."""
    tls: ssl.SSLContext | None = None
    calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = Loopback(self._answer, tls=self.tls)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def host(self) -> str:
        """The host and port of the receiver."""
        return self._server.host

    @property
    def url(self) -> str:
        """The URL to call."""
        return f"{self._server.url}/hooks"

    def events(self, model_id: str) -> list[str]:
        """Return the events received for one model, in order."""
        return [call.body["event"] for call in self.calls if call.body["model_id"] == model_id]

    def _answer(self, request: Request) -> Answer:
        self.calls.append(
            Call(
                request.headers["webhook-id"],
                request.headers,
                json.loads(request.body),
                self._verify(request.headers, request.body),
            )
        )
        time.sleep(self.seconds)
        return Answer(self.status, headers=self.headers)

    def _verify(self, headers: Mapping[str, str], body: bytes) -> bool | None:
        signatures = headers.get("webhook-signature")
        if signatures is None:
            return None
        if self.key is None:
            return False
        secret = base64.b64decode(self.key.removeprefix("whsec_"))
        signed = b".".join(
            (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
        )
        expected = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
        return any(
            hmac.compare_digest(signature, f"v1,{expected}") for signature in signatures.split()
        )
