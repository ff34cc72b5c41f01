"""A server that quotes the secrets it receives, to test that the loader reports no secret.

For example:

    with Servers(says(401)) as servers:
        load(f"{servers.source.url}/model?token={QUERY}")
        assert not leaks(log)

Every secret contains MARK. `leaks` finds MARK in any case, and the secret that Basic authentication
encodes, so it also finds a secret that is cut off.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from devkit.loopback import Loopback, Request

MARK = "MARKED"
TOKEN = f"hf_{MARK}token0123456789"
QUERY = f"{MARK}query0123456789"
USER, PASSWORD = f"{MARK}user0123", f"{MARK}password0123"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
HTML = "<!DOCTYPE html><html><head><title>ECHO</title></head><body>ECHO</body></html>"

Respond = Callable[["Servers", Request, str], bytes]


def leaks(text: str) -> list[str]:
    """Return every place in a text that contains a secret, with the text around it."""
    found = re.finditer(f"{MARK}|{re.escape(BASIC[:12])}", text, re.IGNORECASE)
    return [text[max(0, match.start() - 60) : match.end() + 60] for match in found]


@dataclass
class Servers:
    """A server that quotes the secrets of a request, and another origin to redirect to."""

    respond: Respond
    address: str = "127.0.0.1"

    def __enter__(self) -> Servers:
        self.source = Loopback(
            lambda asked: self.respond(self, asked, echo(asked)), address=self.address
        )
        self.other = Loopback(self._elsewhere, address=self.address)
        self.source.start()
        self.other.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()
        self.other.stop()

    def _elsewhere(self, _: Request) -> bytes:
        return page(404, "nothing here")


def echo(asked: Request) -> str:
    """Return all secrets of a request, as they were sent."""
    sent = re.findall(r"[?&]token=([^&]+)", asked.target)
    return " ".join((asked.headers.get("authorization", ""), *sent))


def page(status: int, body: str, *headers: str, phrase: str = "X") -> bytes:
    """Return a whole HTTP response."""
    length = f"Content-Length: {len(body.encode())}"
    lines = (f"HTTP/1.1 {status} {phrase}", length, *headers, "Connection: close", "", "")
    return "\r\n".join(lines).encode() + body.encode()


def says(status: int, *headers: str) -> Respond:
    """Return a responder with an error that quotes secrets in body, reason phrase and headers."""

    def respond(_servers: Servers, _asked: Request, quoted: str) -> bytes:
        body = json.dumps({"error": quoted, "message": quoted})
        own = [header.replace("ECHO", quoted) for header in headers]
        return page(status, body, f"X-Error-Message: {quoted}", *own, phrase=quoted)

    return respond


def serves(body: str) -> Respond:
    """Return a responder that answers with this text, in which the secrets replace ECHO."""
    return lambda _servers, _asked, quoted: page(200, body.replace("ECHO", quoted))


def leads(to: str) -> Respond:
    """Return a responder that redirects to a URL.

    A secret replaces ECHO in it, and the host and port of the other origin replace OTHER.
    """

    def respond(servers: Servers, asked: Request, quoted: str) -> bytes:
        word = quoted.split()[-1]
        where = to.replace("ECHO", word).replace("OTHER", servers.other.host)
        if where.startswith("/") and asked.target == where:
            return page(404, quoted)
        return page(302, quoted, f"Location: {where}")

    return respond


def listing(name: str) -> Respond:
    """Return a responder with the listing of a repo with one file.

    A secret replaces ECHO in the file's name.
    """

    def respond(_servers: Servers, _asked: Request, quoted: str) -> bytes:
        files = [{"rfilename": name.replace("ECHO", quoted.split()[-1]), "size": 9}]
        return page(200, json.dumps({"id": "org/model", "sha": "c" * 40, "siblings": files}))

    return respond


def raw(text: str) -> Respond:
    """Return a responder that sends this text, in which the secrets replace ECHO.

    It need not be an HTTP response.
    """
    return lambda _servers, _asked, quoted: text.replace("ECHO", quoted).encode()
