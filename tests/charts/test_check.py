"""Tests of the script of `helm test` with a real operator and API server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.charts.helmcharts import OPERATOR, env_of, one, pod_of, render
from tests.support.kube.cluster import CLAIM, Cluster
from tests.support.kube.kubeconfig import credentials

pytestmark = pytest.mark.cluster

SCRIPT = OPERATOR / "files" / "check.py"


def check(
    cluster: Cluster, port: int, folder: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as its Pod does."""
    server, token, ca = credentials(cluster.backend.operator_kubeconfig)
    (folder / "token").write_text(token)
    (folder / "ca.crt").write_text(ca)
    address = urlsplit(server)
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "ACCOUNT_DIR": str(folder),
        "OPERATOR_URL": f"http://127.0.0.1:{port}",
        "KUBERNETES_SERVICE_HOST": str(address.hostname),
        "KUBERNETES_SERVICE_PORT": str(address.port),
        "NAMESPACES": cluster.namespace,
        "CLAIM_NAME": CLAIM,
        "PATIENCE_SECONDS": "20",
        # A proxy in the image's environment must not get the token.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-I", "-c", SCRIPT.read_text()]
    return subprocess.run(command, env=variables | env, capture_output=True, text=True, timeout=60)


def probes_port(cluster: Cluster) -> int:
    """Return the port of the operator's probes, which its log names."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = re.search(r"probes on port (\d+)", cluster.operator_log())
        if found:
            return int(found[1])
        time.sleep(0.1)
    raise AssertionError(cluster.operator_log())


@pytest.mark.slow
def test_check_succeeds_with_a_running_operator(cluster: Cluster, tmp_path: Path) -> None:
    """The check succeeds, but fails if the PVC is missing or the Pod has no token."""
    env = env_of(render({"models": {"namespaces": [cluster.namespace]}}))
    in_a_pod = {"KUBERNETES_SERVICE_HOST", "HOME"}
    cluster.start_operator(**{key: env[key] for key in env.keys() - in_a_pod})

    done = check(cluster, probes_port(cluster), tmp_path)

    assert done.returncode == 0, done.stderr
    assert "/readyz: ready" in done.stdout
    assert "StableDiffusionModels are served" in done.stdout
    assert f"claim {CLAIM} is " in done.stdout

    missing = check(cluster, probes_port(cluster), tmp_path, CLAIM_NAME="weights")
    assert missing.returncode == 1
    assert 'HTTP 404: persistentvolumeclaims "weights" not found' in missing.stderr

    (tmp_path / "other").mkdir()
    nobody = check(cluster, probes_port(cluster), tmp_path, ACCOUNT_DIR=str(tmp_path / "other"))
    assert nobody.returncode == 1


def test_check_fails_without_an_operator(cluster: Cluster, tmp_path: Path) -> None:
    """Without an operator the check fails, after a wait, because an upgrade may be running."""
    done = check(cluster, 9, tmp_path, PATIENCE_SECONDS="0")

    assert done.returncode == 1
    assert "http://127.0.0.1:9/readyz" in done.stderr


def test_the_pod_runs_this_script_with_the_operators_account() -> None:
    """The Pod uses the operator's image, because the script needs Python."""
    objects = render()
    pod = pod_of(one(objects, "Pod"))
    (container,) = pod["containers"]
    operator = pod_of(one(objects, "Deployment"))

    assert container["command"] == ["python3", "-c"]
    assert container["args"] == [SCRIPT.read_text()]
    assert container["image"] == operator["containers"][0]["image"]
    assert pod["serviceAccountName"] == operator["serviceAccountName"]
    assert {entry["name"] for entry in container["env"]} == {
        "OPERATOR_URL",
        "NAMESPACES",
        "CLAIM_NAME",
    }
    url = urlsplit(container["env"][0]["value"])
    service = one(objects, "Service")
    assert url.hostname == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert url.port in [port["port"] for port in service["spec"]["ports"]]
