"""A webhook's receiving end: a loopback server that verifies Standard Webhooks signatures.

Written from the specification (https://www.standardwebhooks.com), not from the operator's code.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Call:
    """One received call. verified: None where it was not signed."""

    id: str
    headers: dict[str, str]
    body: dict[str, Any]
    verified: bool | None


@dataclass
class WebhookReceiver:
    """Receives calls until it is left.

    status, headers, seconds: what it answers, and after how long; may be changed at any time.
    tls: what it speaks https with.
    """

    key: str | None = None
    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    tls: ssl.SSLContext | None = None
    calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.calls.append(receiver._read(dict(self.headers), body))
                time.sleep(receiver.seconds)
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """The address to call."""
        return f"{'https' if self.tls else 'http'}://{self.host}/hooks"

    def events(self, model_id: str) -> list[str]:
        """The events received for one model, in order."""
        return [call.body["event"] for call in self.calls if call.body["model_id"] == model_id]

    def _read(self, headers: dict[str, str], body: bytes) -> Call:
        lower = {name.lower(): value for name, value in headers.items()}
        return Call(lower["webhook-id"], lower, json.loads(body), self._verify(lower, body))

    def _verify(self, headers: dict[str, str], body: bytes) -> bool | None:
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
