"""The limits of a download: size, speed and free space."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.net import partial
from sd_loader.net.patience import Pace
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
def test_size_limit_is_enforced(server, settings, into, faults):
    """The limit holds with and without a Content-Length. The volume stays empty."""
    url = server.serve_file("/model", BODY, **faults)
    error = refusal(url, replace(settings, max_bytes=len(BODY) - 1), into)
    assert error.reason is Reason.TOO_LARGE
    assert str(len(BODY) - 1) in error.message
    assert list(into.iterdir()) == []


def test_too_slow_download_is_aborted(server, settings, into):
    """A read timeout alone would never end a slow but steady download."""
    url = server.serve_file("/model", BODY, rate=400)
    with pytest.raises(LoaderError, match="too slow") as caught:
        load(url, settings, into, pace=Pace(bytes_per_second=10_000, window_seconds=0.5))
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE


def test_file_larger_than_the_free_space_is_refused_early(server, settings, into, monkeypatch):
    """The loader checks the free space before it writes anything."""
    url = server.serve_file("/model", BODY)
    real = os.statvfs(into)
    free = os.statvfs_result((*real[:4], 1, *real[5:]))
    monkeypatch.setattr(partial.os, "statvfs", lambda _folder: free)
    error = refusal(url, settings, into)
    assert error.reason is Reason.INSUFFICIENT_STORAGE
    assert (into / "download.part").stat().st_size == 0


def test_full_volume_is_named(server, settings, into):
    """A file size limit stands in for the full disk. The next Pod continues the download."""
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
