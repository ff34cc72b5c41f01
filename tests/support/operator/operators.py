"""Operators behind a proxy that are restarted when they end, as in a Deployment."""

from __future__ import annotations

import http.client
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from devkit.webhook_receiver import WebhookReceiver
from tests.support.kube.cluster import Cluster
from tests.support.kube.kubeconfig import credentials
from tests.support.operator.operated import KEY
from tests.support.proxies.faultproxy import FaultProxy


@dataclass
class Operators:
    """One or more operators that run at once with the same settings."""

    cluster: Cluster
    settings: dict[str, str]
    count: int = 1
    deaths: int = 0
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self) -> None:
        """Start operators until `count` of them run; `deaths` counts those that ended."""
        with self._lock:
            ended = [process for process in self._running if process.poll() is not None]
            self.deaths += len(ended)
            self._running = [process for process in self._running if process not in ended]
            while len(self._running) < self.count:
                self._running.append(self.cluster.start_operator(**self.settings))

    def kill(self) -> None:
        """Kill all operators with SIGKILL; `keep` starts new ones."""
        with self._lock:
            for process in self._running:
                process.kill()
                process.wait()


@dataclass
class Behind:
    """A namespace, and its operators behind a proxy."""

    cluster: Cluster
    proxy: FaultProxy
    receiver: WebhookReceiver
    operators: Operators


@contextmanager
def behind_proxy(cluster: Cluster, work: Path) -> Iterator[Behind]:
    """Prepare operators behind a proxy; tests start them with `operators.keep`."""
    server, token, ca = credentials(cluster.backend.operator_kubeconfig)
    key_file = work / "webhook-key"
    key_file.write_text(KEY)
    proxy = FaultProxy(server, token, ca, work / "proxy.kubeconfig")
    with proxy, WebhookReceiver(key=KEY) as receiver:
        settings = {
            "KUBECONFIG": str(proxy.kubeconfig),
            "SD_OPERATOR_ALLOWED_HOSTS": receiver.host,
            "SD_OPERATOR_WEBHOOK_KEY_FILE": str(key_file),
            "SD_OPERATOR_WEBHOOK_RETRY_SECONDS": "0.3,0.3,0.3,1,1,1,1,1,1",
            "SD_OPERATOR_RESYNC_SECONDS": "2",
            "SD_OPERATOR_MAX_LOADS": "0",
            "SD_OPERATOR_MAX_LOADS_PER_NAMESPACE": "0",
        }
        operators = Operators(cluster, settings)
        proxy.kill = operators.kill
        yield Behind(cluster, proxy, receiver, operators)


def probe(log: str, path: str) -> int:
    """Return the HTTP status of a probe; the port comes from the operator's log."""
    port = re.search(r"probes on port (\d+)", log)
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
