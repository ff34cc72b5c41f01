"""A Pod that is stopped or killed leaves a download that the next Pod continues."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from tests.support.loader.loadercli import (
    Containers,
    Ended,
    artifact_of,
    failed,
    link_to,
    load_request,
)

MANY_STEPS = 8
"""Number of write steps before the signal.

Together they are larger than the file's header, which the next Pod downloads again.
"""


def interrupted(containers: Containers, hub: FakeHub, checkpoint: Path, signum: int) -> Ended:
    """Run a fetch, send it a signal during its download, and assert that it ends within 3 s."""
    link = hub.serve_file("/tiny.safetensors", checkpoint, rate=8_000_000)
    process = containers.start("fetch", *containers.arguments(load_request(link)))
    deadline = time.monotonic() + 30
    while not any(
        json.loads(record.read_text())["written"] >= MANY_STEPS
        for record in containers.store.glob(".staging/*/pod/out/.streamed.json")
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    stopped = time.monotonic()
    ended = containers.end(process)
    assert time.monotonic() - stopped < 3
    return ended


def assert_next_pod_continues(containers: Containers, hub: FakeHub, checkpoint: Path) -> None:
    """Assert that the next Pod requests ranges, and in total fewer bytes than the file has."""
    hub.forget()
    artifact_of(containers.load(load_request(link_to(hub, checkpoint)), pod="pod-2"))
    assert any("range" in request.headers for request in hub.requests)
    assert hub.bytes_served < checkpoint.stat().st_size
    assert not (containers.store / ".staging").exists()


def test_stopped_download_continues_in_the_next_pod(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """SIGTERM ends the loader at once, and the loader still writes a result."""
    ended = interrupted(containers, hub, checkpoint, signal.SIGTERM)
    failed(ended, Reason.LOADER_CRASHED, "stopped by SIGTERM")
    assert_next_pod_continues(containers, hub, checkpoint)


# Marked slow, because store/test_killed_loads.py already kills Pods at every step.
@pytest.mark.slow
def test_killed_download_continues_in_the_next_pod(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """SIGKILL loses only the bytes that are not yet written."""
    ended = interrupted(containers, hub, checkpoint, signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    assert ended.result is None
    assert_next_pod_continues(containers, hub, checkpoint)
