"""Tests of standalone as a process: it cleans up, and does not overwrite foreign files."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.support.kube.stubjobs import is_alive, job
from tests.support.paths import ROOT
from tests.support.processes import running
from tools.kubectl import kubectl_path

pytestmark = pytest.mark.cluster


def test_standalone_leaves_nothing_running(tmp_path):
    """SIGTERM ends all processes, even children of Pods' processes, and removes the kubeconfig."""
    kubeconfig, store = tmp_path / "kubeconfig", tmp_path / "store"
    here = ROOT / "tests/support/kube"
    command = [sys.executable, str(here / "localcluster.py"), "serve"]
    command += ["--store", str(store), "--kubeconfig", str(kubeconfig)]
    command += ["--loader", sys.executable, str(here / "stubloader.py")]
    with running(command, tmp_path / "log", kubeconfig.exists):
        assert kubeconfig.stat().st_mode & 0o777 == 0o600
        manifest = json.dumps(job("j", "convert.child=60 convert.sleep=60"))
        subprocess.run(
            [str(kubectl_path()), f"--kubeconfig={kubeconfig}", "apply", "-f", "-"],
            input=manifest.encode(),
            check=True,
            timeout=30,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not (store / "child.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int((store / "child.pid").read_text())
        assert is_alive(child)

    assert not is_alive(child)
    assert not kubeconfig.exists()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_standalone_does_not_overwrite_another_kubeconfig(tmp_path):
    """Standalone refuses to start and keeps the file, which it would remove at its end."""
    config = tmp_path / "config"
    config.write_text("apiVersion: v1\nkind: Config\ncurrent-context: production\n")
    command = [
        sys.executable,
        "-m",
        "sd_operator",
        "standalone",
        "--ephemeral",
        "--store",
        str(tmp_path / "store"),
    ]

    process = subprocess.run(
        [*command, "--kubeconfig", str(config)], capture_output=True, text=True, timeout=30
    )

    assert process.returncode == 1
    assert f"{config} is not a kubeconfig of standalone" in process.stderr
    assert "production" in config.read_text()
