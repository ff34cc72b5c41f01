"""A cluster with a running operator, sources to load from and a webhook receiver."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from devkit.fakehub import FakeHub
from devkit.webhook_receiver import WebhookReceiver
from sd_api import names
from tests.support.kube.cluster import Cluster, ClusterError
from tests.support.kube.stubloader import MARKS

KEY = "whsec_YSBrZXkgb2Ygc2V2ZW50ZWVuIGIu"
SLOW = 9_000_000
"""A rate in bytes per second at which a tiny checkpoint takes four seconds."""

Json = dict[str, Any]


@dataclass
class Operated:
    """One test's namespace, its operator and the servers that the operator talks to."""

    cluster: Cluster
    hub: FakeHub
    receiver: WebhookReceiver
    checkpoints: list[Path]
    key_file: Path
    operator: subprocess.Popen[bytes] | None = None
    _light: list[str] = field(default_factory=list)

    def start(self, **settings: str) -> None:
        """Start the operator."""
        usual = {
            "SD_OPERATOR_ALLOWED_HOSTS": f"{self.hub.host},{self.receiver.host}",
            "SD_OPERATOR_HF_ENDPOINT": self.hub.url,
            "SD_OPERATOR_WEBHOOK_KEY_FILE": str(self.key_file),
            "SD_OPERATOR_WEBHOOK_RETRY_SECONDS": "0.3,0.3,0.3,1,1,1,1,1,1",
            "SD_OPERATOR_RETRY_FIRST_SECONDS": "0.5",
            "SD_OPERATOR_RETRY_MAX_SECONDS": "1",
            "SD_OPERATOR_RESYNC_SECONDS": "5",
        }
        self.operator = self.cluster.start_operator(**(usual | settings))

    def kill(self) -> None:
        """Kill the operator with SIGKILL."""
        assert self.operator is not None
        self.operator.kill()
        self.operator.wait()

    def link(self, which: int = 0, name: str = "model", **faults: Any) -> str:
        """Serve a checkpoint and return its link."""
        path = f"/{name}-{which}.safetensors"
        return self.hub.serve_file(path, self.checkpoints[which], **faults)

    def light_link(self, name: str, seconds: float = 0.0) -> str:
        """Return a link whose load does little work and takes about this time.

        stubloader.py only waits; the loader of a cluster with nodes downloads a tiny checkpoint.
        """
        if self.cluster.stub:
            return f"https://models.example.com/{name}?seconds={seconds}"
        if name not in self._light:
            self._light.append(name)
        which = self._light.index(name) % len(self.checkpoints)
        rate = int(self.checkpoints[which].stat().st_size / seconds) if seconds else None
        return self.link(which, name, rate=rate)

    def load(self, name: str = "sketch", **spec: Any) -> Json:
        """Apply a model and wait until it is Ready."""
        self.cluster.model(name, **spec)
        return self.ready(name)

    def ready(self, name: str = "sketch") -> Json:
        """Wait until a model is Ready for its current spec."""
        return self.wait(name, lambda item: _is_ready(item))

    def stalled(self, name: str, reason: str) -> Json:
        """Wait until a model is stalled for this reason."""
        return self.wait(name, lambda item: condition(item, "Stalled").get("reason") == reason)

    def in_phase(self, name: str, phase: str) -> Json:
        """Wait until a model is in this phase."""
        return self.wait(name, lambda item: item["status"].get("phase") == phase)

    def wait(self, name: str, reached: Callable[[Json], object]) -> Json:
        """Wait until a model reaches a state; an error includes the operator's log."""
        try:
            return self.cluster.wait_for(
                "sdm", name, lambda item: "status" in item and reached(item)
            )
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.cluster.operator_log()[-3000:]}") from None

    def delete(self, name: str = "sketch") -> None:
        """Request the deletion of a model without waiting for it."""
        self.cluster.delete("sdm", name)

    def gone(self, name: str = "sketch") -> None:
        """Wait until a model is deleted; an error includes the operator's log."""
        try:
            self.cluster.wait_gone("sdm", name)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.cluster.operator_log()[-3000:]}") from None

    def jobs(self, role: str, name: str | None = None) -> list[Json]:
        """Return the Jobs with this role, of one model or of all."""
        found = self.cluster.list("jobs", labelSelector=f"{names.LABEL_ROLE}={role}")
        wanted = f"{self.cluster.namespace}/{name}"
        return [
            job
            for job in found
            if name is None or job["metadata"]["annotations"][names.ANNOTATION_MODEL] == wanted
        ]

    def reasons(self, name: str = "sketch") -> list[str]:
        """Return the reasons of the Events about a model."""
        return [reason for reason, _ in self.cluster.events(name)]

    def left(self) -> list[str]:
        """Return the paths of all files and links on the volume, except stubloader.py's marks."""
        found = (
            path.relative_to(self.cluster.store)
            for path in self.cluster.store.rglob("*")
            if path.is_symlink() or path.is_file()
        )
        return sorted(path.as_posix() for path in found if path.parts[0] != MARKS)

    def light_loads(self, name: str) -> int:
        """Return how many loads of a light link did any work; `name` is the model's name."""
        if not self.cluster.stub:
            return round(self.hub.bytes_served / self.checkpoints[0].stat().st_size)
        marks = (self.cluster.store / MARKS).glob(f"{name}-*")
        return sum(len(mark.read_text()) for mark in marks)

    def eventually(self, holds: Callable[[], object], timeout: float = 60.0) -> None:
        """Wait until a check of something outside the cluster holds."""
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, self.cluster.operator_log()[-3000:]
            time.sleep(0.05)

    def metrics(self, which: int = -1) -> dict[tuple[str, ...], float]:
        """Return the metrics of an operator, by default the newest, by name and label values."""
        log = sorted(self.cluster.work.glob("operator-*.log"))[which].read_text()
        port = re.search(r"metrics on port (\d+)", log)
        if port is None:
            return {}
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=5) as response:
            text = response.read().decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@contextlib.contextmanager
def operated_in(cluster: Cluster, checkpoints: list[Path], work: Path) -> Iterator[Operated]:
    """Start the sources and the receiver; the caller starts the operator."""
    key_file = work / "webhook-key"
    key_file.write_text(KEY)
    with (
        FakeHub(address=cluster.backend.source_host) as hub,
        WebhookReceiver(key=KEY) as receiver,
    ):
        yield Operated(cluster, hub, receiver, checkpoints, key_file)


def condition(item: Json, kind: str) -> Json:
    """Return a condition of a model; empty if the model lacks it."""
    found = [one for one in item.get("status", {}).get("conditions", []) if one["type"] == kind]
    return found[0] if found else {}


def _is_ready(item: Json) -> bool:
    ready = condition(item, "Ready")
    current = ready.get("observedGeneration", 0) >= item["metadata"]["generation"]
    return current and ready.get("status") == "True"


def loaded_once(operated: Operated) -> None:
    """Check that one Job made one download, and that the webhook got load_started and loaded."""
    (job,) = operated.jobs("load")
    assert job["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] == "0"
    assert operated.hub.bytes_served <= 1.1 * operated.checkpoints[0].stat().st_size
    operated.eventually(
        lambda: {"model.load_started", "model.loaded"} <= set(operated.receiver.events("sketch"))
    )


def told_once(operated: Operated) -> None:
    """Check that all webhook calls for one event of a model have the same id."""
    ids = defaultdict(set)
    for call in operated.receiver.calls:
        ids[call.body["event"], call.body["model_id"]].add(call.id)
    assert ids
    assert all(len(found) == 1 for found in ids.values()), ids
