"""Tests of the bounds on connections: deadlines, numbers, and floods of unfinished requests."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from pathlib import Path

import pytest

from sd_operator.gateway import connections
from sd_operator.gateway.connections import Bounds
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import Gateway, write_keys

HEAD = f"POST {PREFIX}/get_all_models HTTP/1.1\r\nHost: x\r\n"


# Which connection is closed


@dataclass(eq=False)
class Transport:
    """A transport that records whether its connection was closed."""

    open: bool = True

    def abort(self) -> None:
        """Record that the connection was closed."""
        self.open = False


class Peer:
    """A connection from an address, with a recording transport."""

    def __init__(self, bounds: Bounds, address: str) -> None:
        self.transport = Transport()
        bounds.add(self, address)

    @property
    def open(self) -> bool:
        """Whether the connection is still open."""
        return self.transport.open


def test_connection_that_has_waited_longest_makes_room() -> None:
    """A new client is let in; a connection whose request is being served stays open."""
    bounds = Bounds(3, 3, ())
    working, second, third = (Peer(bounds, address) for address in "abc")
    bounds.waits(working, waits=False)
    bounds.waits(second, waits=True)  # its wait starts again, so `third` has waited longest

    fourth = Peer(bounds, "d")

    assert [peer.open for peer in (working, second, third, fourth)] == [True, True, False, True]


def test_new_connection_is_closed_if_all_others_are_at_work() -> None:
    """The new connection is closed without a response, which would cost more than it helps."""
    bounds = Bounds(2, 2, ())
    working = [Peer(bounds, address) for address in "ab"]
    for peer in working:
        bounds.waits(peer, waits=False)

    assert not Peer(bounds, "c").open
    assert all(peer.open for peer in working)


def test_address_with_too_many_connections_closes_its_own() -> None:
    """Connections of other addresses stay open. An IPv6 address counts as its /64 network."""
    bounds = Bounds(10, 2, ())
    other = Peer(bounds, "192.0.2.9")
    mine = [Peer(bounds, f"2001:db8::{number}") for number in range(3)]

    assert [peer.open for peer in mine] == [False, True, True]
    assert other.open


def test_closed_connections_do_not_count() -> None:
    """Closed connections are not counted, and nothing about them stays in memory."""
    bounds = Bounds(2, 1, ())
    for _ in range(5):
        peer = Peer(bounds, "192.0.2.1")
        bounds.remove(peer)
        assert peer.open
    assert (bounds._addresses, bounds._waiting, bounds._counts) == ({}, {}, {})


@pytest.mark.parametrize("proxies", ["192.0.2.1", "192.0.2.0/24"])
def test_trusted_proxy_may_have_all_connections(proxies: str) -> None:
    """All callers behind an Ingress have its address, so the limit per address does not apply."""
    bounds = Bounds(3, 1, (proxies,))
    peers = [Peer(bounds, "192.0.2.1") for _ in range(3)]
    assert all(peer.open for peer in peers)
    Peer(bounds, "192.0.2.1")
    assert not peers[0].open


# Deadlines


@pytest.fixture
def impatient(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The module's gateway with short deadlines."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(connections, "READ_SECONDS", 1.0)
    return gateway


def connect(port: int, sent: bytes = b"") -> socket.socket:
    """Connect to a port of this machine and send something."""
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        client.sendall(sent)
    except OSError:
        client.close()
        raise
    return client


def seconds_until_closed(client: socket.socket, drip: bytes = b"") -> tuple[float, bytes]:
    """Return the seconds until the server closes a connection, and what it sent meanwhile.

    `drip` is sent repeatedly.
    """
    begin, received = time.monotonic(), b""
    client.settimeout(0.1)
    while time.monotonic() - begin < 10:
        with contextlib.suppress(TimeoutError):
            try:
                if drip:
                    client.sendall(drip)
                chunk = client.recv(65536)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                break
            if not chunk:
                break
            received += chunk
    return time.monotonic() - begin, received


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("sent", "drip", "response"),
    [
        pytest.param("", "", "", id="nothing"),
        pytest.param("GET /he", "", "", id="half a line"),
        pytest.param(f"{HEAD}X: ", "a", "", id="dripping head"),
        pytest.param(f"{HEAD}Content-Length: 60\r\n\r\na", "", "408", id="body"),
        pytest.param(f"{HEAD}Content-Length: 60000\r\n\r\na", "a", "408", id="dripping body"),
        pytest.param(
            f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", "408", id="dripping chunks"
        ),
        pytest.param(
            "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n",
            "a",
            "404",
            id="dripping body that nothing reads",
        ),
        pytest.param(
            f"{HEAD}Authorization: Bearer wrong\r\nContent-Length: 60000\r\n\r\n",
            "a",
            "401",
            id="dripping body with a wrong key",
        ),
        pytest.param(
            "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he", "x", "200", id="second request"
        ),
    ],
)
def test_request_that_is_never_finished_is_given_up(
    impatient: Gateway, sent: str, drip: str, response: str
) -> None:
    """The connection is closed at the deadline, even if the client sends a byte now and then.

    A request whose body is late gets a response with the cause.
    """
    with connect(impatient.port, sent.encode()) as client:
        seconds, received = seconds_until_closed(client, drip.encode())

    assert 0.3 < seconds < 3
    assert received.decode().partition(" ")[2][:3] == response
    if response == "408":
        body = json.loads(received.partition(b"\r\n\r\n")[2])
        assert body == {"status": "error", "message": connections.LATE_BODY}


@pytest.mark.cluster
def test_response_that_nobody_reads_is_given_up(impatient: Gateway) -> None:
    """The connection of a client that sends requests but reads no response is closed.

    Otherwise such a client could hold its connection, and fill the memory with responses.
    """
    with connect(impatient.port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        deadline = time.monotonic() + 10
        while _accepts(client):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _accepts(client: socket.socket) -> bool:
    try:
        client.sendall(b"G")
    except TimeoutError:
        return True
    except ConnectionError:
        return False
    return True


@pytest.mark.cluster
def test_slow_but_steady_caller_is_served(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head and body each have the whole deadline, and also those of the next request."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    body = json.dumps({"key": gateway.key}).encode()
    head = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode()
    with connect(gateway.port) as client:
        for _ in range(2):
            client.sendall(head[:30])
            for part in (head[30:] + body[:20], body[20:]):
                time.sleep(0.6)
                client.sendall(part)
            # Head and body of a response may arrive one after the other.
            with HTTPResponse(client) as response:
                response.begin()
                assert (response.status, bool(response.read())) == (200, True)


@pytest.mark.cluster
def test_wrong_key_in_the_header_is_refused_before_the_body_is_read(gateway: Gateway) -> None:
    """The response comes before the body is sent. A correct key in the body does not help."""
    head = f"{HEAD}Authorization: Bearer wrong\r\nContent-Length: 50000\r\n\r\n"
    with connect(gateway.port, head.encode()) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
    body = json.dumps({"key": gateway.key}).encode()
    assert gateway.post("get_all_models", body, Authorization="Bearer wrong")[0] == 401
    assert gateway.post("get_all_models", body, Authorization=f"Bearer {gateway.key}")[0] == 200


@pytest.mark.cluster
def test_number_of_connections_is_a_setting(gateway: Gateway, tmp_path: Path) -> None:
    """The bounds come from the settings of the server."""
    (key,) = write_keys(tmp_path / "keys", "default")
    settings = GatewaySettings(tmp_path / "keys", max_connections=2)
    settings = replace(settings, kubeconfig=gateway.settings.kubeconfig)
    with Gateway(settings, key) as small, contextlib.ExitStack() as stack:
        first, *others = (stack.enter_context(connect(small.port)) for _ in range(3))
        assert seconds_until_closed(first)[0] < 5
        for client in others:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
