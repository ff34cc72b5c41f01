"""The ports of probes and metrics, against clients that leave their requests unfinished."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from typing_extensions import override

from sd_operator.base.httpd import Server
from sd_operator.base.metrics import Metrics
from sd_operator.base.probes import Probes

DEADLINE_SECONDS = 1.0

Serve = Callable[[str, int], tuple[int, Callable[[], None]]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "deadline_seconds", DEADLINE_SECONDS)


@pytest.fixture
def before() -> Iterator[int]:
    """Give the number of serving threads before the test; after it, fail if more remain."""
    count = at_work()
    yield count
    eventually(lambda: at_work() <= count)


def at_work() -> int:
    """Return how many threads of this process serve a connection."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


@contextlib.contextmanager
def served(serve: Serve) -> Iterator[int]:
    """Give the port of a server that stops when the context ends."""
    port, stop = serve("127.0.0.1", 0)
    try:
        yield port
    finally:
        stop()


def get(port: int, path: str) -> int:
    """Return the HTTP status of a GET for this path."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as client:
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        return response.status


def opened(port: int, count: int, sent: bytes) -> list[socket.socket]:
    """Open connections and send these bytes on each, even if the server closes some of them."""
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        clients.append(client)
    return clients


def is_ended(client: socket.socket) -> bool:
    """Whether the server ended a connection, perhaps after a response."""
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


UNFINISHED = {
    "nothing": b"",
    "half a line": b"GET /heal",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
}
SERVED = {"probes": (Probes, "/healthz"), "metrics": (Metrics, "/metrics")}
QUICK = (("nothing", "metrics"), ("half a line", "probes"), ("half a head", "probes"))
"""The rows of `make test`; together they have each beginning of a request and each server."""


@pytest.mark.parametrize(
    ("served_by", "page", "sent"),
    [
        pytest.param(
            *SERVED[server],
            UNFINISHED[sent],
            id=f"{sent}-{server}",
            marks=() if (sent, server) in QUICK else pytest.mark.slow,
        )
        for sent in UNFINISHED
        for server in SERVED
    ],
)
def test_unfinished_requests_are_bounded_and_end(
    served_by: type[Probes | Metrics], page: str, sent: bytes, before: int
) -> None:
    """300 unfinished requests use few threads, block no other request, and end at the deadline."""
    with served(served_by().serve) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client) for client in opened(port, 300, sent)]
        assert get(port, page) == 200
        assert at_work() <= before + Server.max_connections
        started = time.monotonic()
        assert all(map(is_ended, clients))
        assert time.monotonic() - started < DEADLINE_SECONDS + 4
        assert get(port, page) == 200
        eventually(lambda: at_work() <= before)


def test_deadline_is_for_the_whole_request() -> None:
    """Sending a byte now and then does not postpone the deadline."""
    with served(Probes().serve) as port:
        (client,) = opened(port, 1, b"GET /healthz HTTP/1.1\r\nX: ")
        started = time.monotonic()
        with contextlib.closing(client), contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 10:
                client.sendall(b"a")
                time.sleep(0.05)
        assert DEADLINE_SECONDS / 2 < time.monotonic() - started < DEADLINE_SECONDS + 4


class LargePage(BaseHTTPRequestHandler):
    """Serves a response that does not fit into the buffers of a connection."""

    def do_GET(self) -> None:
        """Send the large response."""
        self.wfile.write(bytes(64 * 2**20))


class FaultyPage(BaseHTTPRequestHandler):
    """Fails to make a response."""

    def do_GET(self) -> None:
        """Raise an error."""
        raise ValueError("a fault")


def test_response_that_is_never_read_ends_at_the_deadline(
    before: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The serving thread ends. Nothing is logged, since clients may end connections at any time."""
    with served(lambda address, port: Server(address, port, LargePage).start("large")) as port:
        (client,) = opened(port, 1, b"GET / HTTP/1.0\r\n\r\n")
        eventually(lambda: at_work() == before + 1)
        eventually(lambda: at_work() == before)
        client.close()
    assert not caplog.records


def test_fault_in_a_page_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log shows what failed, and the next request is served."""
    with (
        caplog.at_level(logging.INFO),
        served(lambda address, port: Server(address, port, FaultyPage).start("faulty")) as port,
    ):
        for _ in range(2):
            (client,) = opened(port, 1, b"GET / HTTP/1.0\r\n\r\n")
            assert is_ended(client)
            client.close()
        eventually(lambda: caplog.text.count("ValueError: a fault") == 2)
    assert f"a request to port {port} failed" in caplog.text


class BusyPage(BaseHTTPRequestHandler):
    """Serves slow responses, and counts how many requests are served at the same time."""

    busy = 0
    most = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        """Count the request, and respond after a moment."""
        with self.lock:
            BusyPage.busy += 1
            BusyPage.most = max(BusyPage.most, BusyPage.busy)
        time.sleep(0.2)
        with self.lock:
            BusyPage.busy -= 1

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def test_busy_threads_count_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy thread counts towards max_connections even after its connection was shut down."""
    monkeypatch.setattr(Server, "max_connections", 3)
    with served(lambda address, port: Server(address, port, BusyPage).start("busy")) as port:
        clients = opened(port, 9, b"GET / HTTP/1.0\r\n\r\n")
        assert all(map(is_ended, clients))
        for client in clients:
            client.close()
    assert BusyPage.most == 3


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
