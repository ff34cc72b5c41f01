"""Tests of `sd-operator standalone --gateway`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway.gatewayrun import call

GREETING = re.compile(r"The gateway is at (\S+) .*\nAPI key: (\S+)")


@pytest.fixture
def running_gateway(tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """The gateway of a standalone without operator: its URL, API key and state folder."""
    log, state = tmp_path / "log", tmp_path / "state"
    state.mkdir()
    command = [
        sys.executable,
        "-m",
        "sd_operator",
        "standalone",
        "--no-operator",
        "--gateway",
        "--ephemeral",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--store", str(tmp_path / "store")],
            env={**os.environ, "TMPDIR": str(state)},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 60
        while (match := GREETING.search(log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield match[1], match[2], state
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert list(state.iterdir()) == [], "the key file is removed at the end"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(match[1].rpartition(":")[2]))) != 0


# Slow, because it starts its own standalone and gateway, while other tests share one.
@pytest.mark.slow
def test_gateway_accepts_the_printed_key(running_gateway: tuple[str, str, Path]) -> None:
    """The gateway listens on loopback. The key is not stored, and its line is private."""
    url, key, state = running_gateway
    fields = {"url": "a/b", "model_id": "sketch", "model_type": "lora"}
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert call(url, key, "load_model", **fields)["status"] == "success"
    assert call(url, key, "get_all_models") == {"models": [], "status": "success"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        call(url, "wrong", "get_all_models")
    (keys_file,) = state.glob("*/gateway-keys")
    assert keys_file.stat().st_mode & 0o777 == 0o600
    assert key not in keys_file.read_text()
