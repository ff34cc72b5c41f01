"""`kubectl sdm`, run by a real kubectl on a cluster with an operator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sd_api import names
from tests.support.kube.cluster import Cluster
from tests.support.operator.operated import Operated
from tools.kubectl import kubectl_path

pytestmark = pytest.mark.cluster


class Plugin:
    """A kubectl that finds the plugin, in a namespace."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        folder.mkdir()
        plugin = folder / "kubectl-sdm"
        plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m sd_operator.cli "$@"\n')
        plugin.chmod(0o755)
        self._namespace = cluster.namespace
        self._env = {
            "PATH": f"{folder}:{kubectl_path().parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "KUBECONFIG": str(cluster.kubeconfig),
            "COLUMNS": "200",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the plugin."""
        return subprocess.run(
            [kubectl_path(), "sdm", *arguments, f"--namespace={self._namespace}"],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def says(self, *arguments: str) -> str:
        """Run a command that must succeed, and return its output."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def plugin(operated: Operated, tmp_path: Path) -> Plugin:
    """The plugin beside a running operator."""
    operated.start()
    return Plugin(operated.cluster, tmp_path / "plugin")


@pytest.mark.slow
def test_a_load_is_followed_to_its_end(plugin: Plugin, operated: Operated) -> None:
    """`status` waits for the end; list, logs and reload then show the model."""
    operated.cluster.model("sketch", url=operated.link())
    shown = plugin.says("status", "sketch", "--watch")
    assert f"sketch in {operated.cluster.namespace}: Ready" in shown
    assert "✓ Ready=True Loaded" in shown
    assert "ModelLoaded" in shown
    assert re.search(r"^sketch +custom_ckpt +Ready +sd-1 ", plugin.says("list"), re.MULTILINE)
    assert re.search(
        rf"^{operated.cluster.namespace} +sketch ", plugin.says("list", "-A"), re.MULTILINE
    )
    assert '"stage":"Downloading"' in plugin.says("logs", "sketch")

    before = operated.cluster.get("sdm", "sketch")["status"]["loadHash"]
    assert "reload of model sketch requested" in plugin.says("reload", "sketch")
    plugin.says("status", "sketch", "--watch")
    model = operated.cluster.get("sdm", "sketch")
    assert model["status"]["loadHash"] != before
    assert names.ANNOTATION_RELOAD in model["metadata"]["annotations"]


@pytest.mark.slow
def test_a_stalled_load_is_shown_with_its_remedy(plugin: Plugin, operated: Operated) -> None:
    """The exit code also reports the failure, for scripts."""
    operated.cluster.model("sketch", url=f"{operated.hub.url}/none.safetensors")
    done = plugin.run("status", "sketch", "--watch")
    assert done.returncode == 1
    assert "✗ Stalled=True SourceNotFound" in done.stdout
    assert "What to do: Check spec.url" in done.stdout


def test_errors_are_kubectls_own(shared_cluster: Cluster, tmp_path: Path) -> None:
    """The plugin prints kubectl's message and no traceback."""
    done = Plugin(shared_cluster, tmp_path / "plugin").run("status", "none")
    assert done.returncode == 1
    assert 'stablediffusionmodels.sd-operator.dev "none" not found' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_logs_of_a_model_without_a_job(plugin: Plugin, operated: Operated) -> None:
    """The message says where to look instead."""
    operated.cluster.model("sketch", url=operated.link(), suspend=True)
    done = plugin.run("logs", "sketch")
    assert done.returncode == 1
    assert "sketch has no Job yet" in done.stderr


@pytest.mark.slow
def test_the_doctor_finds_what_is_missing(plugin: Plugin, operated: Operated) -> None:
    """The doctor reports a missing Secret until the Secret exists with the right key."""
    spec = {"url": operated.link(), "suspend": True, "credentialsSecretRef": {"name": "hub"}}
    operated.cluster.model("sketch", **spec)
    space = operated.cluster.namespace

    done = plugin.run("doctor")
    assert done.returncode == 1, done.stderr
    assert re.search(r"✓ +CRD +sd-operator.dev/v1alpha1, \d+ fields", done.stdout)
    assert re.search(rf"[✓!] +{space}: PVC models", done.stdout)
    assert re.search(
        rf"✗ +{space}: Secret hub +the Secret does not exist *\n +→ Create the Secret with",
        done.stdout,
    )

    # The gateway's Pods have the operator's name label, but must not count as operators.
    labels = {names.LABEL_NAME: names.FIELD_MANAGER, names.LABEL_COMPONENT: "gateway"}
    container = {"name": "x", "image": "x"}
    pod = {"restartPolicy": "Never", "containers": [container]}
    metadata = {"name": "gateway", "labels": labels}
    operated.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    operators = re.search(r"^.*[✓!✗] +operator .*$", done.stdout, re.MULTILINE)
    assert operators is not None

    operated.cluster.kubectl("create", "secret", "generic", "hub", "--from-literal=token=x")
    done = plugin.run("doctor")
    assert operators[0] in done.stdout
    assert re.search(rf"✓ +{space}: Secret hub +the Secret has the key token", done.stdout)
    assert done.returncode == 0, done.stdout
