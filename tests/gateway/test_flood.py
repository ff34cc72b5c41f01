"""A flood of unfinished requests against a gateway, within its container's memory limit."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import write_keys
from tests.support.kube.cluster import Cluster
from tests.support.processes import start, stop

LIMIT_BYTES = 256 * 2**20
"""The memory limit of the gateway's container in the chart."""


@dataclass
class Process:
    """A gateway in its own process, with the default limits."""

    pid: int
    port: int
    probes_port: int
    key: str
    keys: Path

    def get(self, path: str, port: int = 0) -> int:
        """Return the HTTP status of a GET for a path; port: 0 for the gateway's main port."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        ) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def call(self, client: str | None = None) -> int:
        """Call an endpoint with the key, as a proxy does for a client; return the status."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        ) as connection:
            body = json.dumps({"key": self.key})
            headers = {} if client is None else {"X-Forwarded-For": client}
            connection.request("POST", f"{PREFIX}/schedulers_list", body, headers)
            return connection.getresponse().status

    def peak_bytes(self) -> int:
        """Return the most memory that the process has used."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    def open_files(self) -> int:
        """Return how many files and connections the process has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


@contextlib.contextmanager
def process_of(cluster: Cluster, folder: Path, **settings: str) -> Iterator[Process]:
    """Run `sd-gateway run` until the context ends."""
    (key,) = write_keys(folder / "keys", cluster.namespace)
    env = {
        "PATH": os.defpath,
        "KUBECONFIG": str(cluster.kubeconfig),
        "SD_GATEWAY_KEYS_FILE": str(folder / "keys"),
        "SD_GATEWAY_BIND_ADDRESS": "127.0.0.1",
        **dict.fromkeys(
            ("SD_GATEWAY_PORT", "SD_GATEWAY_METRICS_PORT", "SD_GATEWAY_PROBES_PORT"), "0"
        ),
        **settings,
    }
    log = folder / "log"
    process = start([sys.executable, "-m", "sd_operator.gateway", "run"], log, env)
    try:
        ports = [
            int(_found(log, pattern))
            for pattern in (r"Uvicorn running on http://[\d.]+:(\d+)", r"probes on port (\d+)")
        ]
        yield Process(process.pid, *ports, key, folder / "keys")
    finally:
        stop(process)
    assert "Traceback" not in log.read_text()


def _found(log: Path, pattern: str) -> str:
    deadline = time.monotonic() + 60
    while (match := re.search(pattern, log.read_text())) is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return match[1]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open 6,000 connections, if its hard limit allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 6000), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def direct(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A gateway whose clients connect without a proxy."""
    with process_of(shared_cluster, tmp_path_factory.mktemp("direct")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def behind_a_proxy(
    shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A gateway whose clients all connect through one trusted proxy."""
    folder = tmp_path_factory.mktemp("proxied")
    with process_of(shared_cluster, folder, SD_GATEWAY_TRUSTED_PROXIES="127.0.0.1") as gateway:
        yield gateway


def slow_body() -> bytes:
    """Return a request whose body is never complete."""
    head = f"POST {PREFIX}/load_model HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    return head.encode() + b"a" * 59000


def slow_body_of_a_proxy() -> bytes:
    """Return a request whose body is never complete, as a proxy sends it for its client."""
    return slow_body().replace(b"Host: x", b"Host: x\r\nX-Forwarded-For: 192.0.2.7")


def flood(gateway: Process, request: bytes, connections: int, most: int) -> None:
    """Open connections with unfinished requests, and check that the gateway stays healthy.

    Meanwhile it serves probes and good requests. Afterwards it has at most
    `most` + 10 more open files than before, and its memory has stayed below LIMIT_BYTES.
    """
    at_rest = gateway.open_files()
    with contextlib.ExitStack() as stack:
        for number in range(connections):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
            )
            with contextlib.suppress(ConnectionError):
                client.sendall(request)
            if number % 500 == 499:
                assert gateway.get("/healthz", gateway.probes_port) == 200
                assert gateway.get("/readyz", gateway.probes_port) == 200
                assert gateway.get("/healthz") == 200
                assert gateway.call() == 200
                assert gateway.call(client="198.51.100.4") == 200
        assert gateway.open_files() <= at_rest + most + 10
        assert gateway.peak_bytes() < LIMIT_BYTES


CONNECTIONS = pytest.mark.parametrize(
    "connections", [1000, pytest.param(4000, marks=pytest.mark.slow)]
)
"""The numbers of connections to open, which are more than the gateway accepts."""


@pytest.mark.cluster
@pytest.mark.usefixtures("many_files")
@CONNECTIONS
def test_flood_of_unfinished_requests_keeps_nobody_out(direct: Process, connections: int) -> None:
    """The connections stay within the container's memory; probes and a good key are served."""
    flood(
        direct, slow_body(), connections, GatewaySettings(direct.keys).max_connections_per_address
    )


@pytest.mark.cluster
@pytest.mark.usefixtures("many_files")
@CONNECTIONS
def test_flood_through_one_proxy_keeps_nobody_out(
    behind_a_proxy: Process, connections: int
) -> None:
    """The limit per address does not apply to the proxy; the limit of all connections does."""
    most = GatewaySettings(behind_a_proxy.keys).max_connections
    assert most < connections
    flood(behind_a_proxy, slow_body_of_a_proxy(), connections, most)


@pytest.mark.cluster
def test_probes_have_a_port_of_their_own(direct: Process) -> None:
    """The port serves only the probes, and readiness needs a valid key."""
    assert direct.get("/healthz", direct.probes_port) == 200
    assert direct.get("/readyz", direct.probes_port) == 200
    lines = direct.keys.read_text()
    direct.keys.write_text("# none\n")
    assert direct.get("/readyz", direct.probes_port) == 503
    assert direct.get("/healthz", direct.probes_port) == 200
    direct.keys.write_text(lines)
    assert direct.get("/readyz", direct.probes_port) == 200
    assert direct.get("/docs", direct.probes_port) == 404
