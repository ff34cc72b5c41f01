"""Runs Prometheus and promtool, and turns the chart's monitors into scrape configs."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import free_ports

Json = dict[str, Any]
Labels = frozenset[tuple[str, str]]


def program(name: str) -> str:
    """Return the path of prometheus or promtool. Skip the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on PATH: apt install prometheus")
    return path


def promtool(*arguments: object) -> str:
    """Run promtool, which must succeed, and return its output."""
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def scrape_config(monitor: Json, port: int) -> Json:
    """Return the scrape config of one Pod, as the Prometheus operator makes it from a monitor.

    The Pod is named `pod` and listens on a port of this machine.
    """
    kind, namespace, name = (
        monitor["kind"],
        monitor["metadata"]["namespace"],
        monitor["metadata"]["name"],
    )
    pods = kind == "PodMonitor"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints" if pods else "endpoints"]
    target = {"namespace": namespace, "pod": "pod", "endpoint": endpoint["port"]}
    target["job"] = f"{namespace}/{name}" if pods else name
    return {
        "job_name": f"{kind}/{namespace}/{name}",
        "honor_labels": endpoint.get("honorLabels", False),
        "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": target}],
        "relabel_configs": [
            {"target_label": rule["targetLabel"], "replacement": rule["replacement"]}
            for rule in endpoint.get("relabelings", ())
        ],
    }


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, which scrapes and evaluates its rules once a second."""

    url: str

    def query(self, expression: str) -> dict[Labels, float]:
        """Return the current samples of an expression by their labels."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=5) as response:
            result = json.load(response)["data"]["result"]
        return {frozenset(one["metric"].items()): float(one["value"][1]) for one in result}

    def eventually(
        self, expression: str, holds: Callable[[dict[Labels, float]], object]
    ) -> dict[Labels, float]:
        """Wait until the samples of an expression are as expected, and return them."""
        deadline = time.monotonic() + 30
        while not holds(samples := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression}: {samples}"
            time.sleep(0.2)
        return samples


@contextmanager
def prometheus(
    scrapes: list[Json], rules: Mapping[str, Json], folder: Path
) -> Iterator[Prometheus]:
    """Run Prometheus with these scrapes and files of rules."""
    for name, groups in rules.items():
        (folder / name).write_text(yaml.safe_dump(groups))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": list(rules),
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [program("prometheus"), "--config.file=prometheus.yaml", "--storage.tsdb.path=data"]
    command.append(f"--web.listen-address={address}")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        running = Prometheus(f"http://{address}")
        _until_ready(running, process, folder / "prometheus.log")
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _until_ready(running: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{running.url}/-/ready", timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
