"""The limits of a download: its size, its pace, and the space on the volume."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net import partial
from sd_loader.net.transport import Pace
from tests.support.loader.linkfetches import BODY, SHA256, load, refusal
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({}, id="announced"),
        pytest.param({"chunked": True}, id="not announced"),
        pytest.param({"endless": True}, id="endless"),
    ],
)
def test_the_size_limit_is_enforced(server, settings, into, faults):
    """Announced or not, and nothing stays on the volume."""
    url = server.serve_file("/model", BODY, **faults)
    error = refusal(url, replace(settings, max_bytes=len(BODY) - 1), into)
    assert error.reason is Reason.TOO_LARGE
    assert str(len(BODY) - 1) in error.message
    assert list(into.iterdir()) == []


def test_a_drip_is_given_up(server, settings, into):
    """A read timeout alone would wait for ever."""
    url = server.serve_file("/model", BODY, rate=400)
    with pytest.raises(LoaderError, match="too slow") as caught:
        load(url, settings, into, pace=Pace(bytes_per_second=10_000, window_seconds=0.5))
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE


def test_what_will_not_fit_is_refused_before_the_first_byte(server, settings, into, monkeypatch):
    """The free space is asked for before anything is written."""
    url = server.serve_file("/model", BODY)
    real = os.statvfs(into)
    free = os.statvfs_result((*real[:4], 1, *real[5:]))
    monkeypatch.setattr(partial.os, "statvfs", lambda _folder: free)
    error = refusal(url, settings, into)
    assert error.reason is Reason.INSUFFICIENT_STORAGE
    assert (into / "download.part").stat().st_size == 0


def test_a_full_volume_is_named(server, settings, into):
    """A limit on file size stands in for the full disk; the part is kept for the next Pod."""
    url = server.serve_file("/model", BODY, chunked=True)
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from pathlib import Path\n"
        "from tests.support.loader import linkfetches as t\n"
        "settings = t.Settings(allowed_hosts=frozenset({'127.0.0.1'}))\n"
        "try:\n"
        "    t.load(sys.argv[1], settings, Path(sys.argv[2]))\n"
        "except t.LoaderError as error:\n"
        "    print(error.reason, error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(into)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("InsufficientStorage the volume is full"), done.stderr
    assert load(url, settings, into).source.sha256 == SHA256
