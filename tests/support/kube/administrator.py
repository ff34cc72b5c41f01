"""Writes a kubeconfig for the test run, as the administrator of an existing cluster."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sd_operator.standalone.pki import write_private
from tests.support.kube.cluster import TEST_LABEL, Backend, Cluster
from tools.kubectl import kubectl_path

TOKEN_HOURS = 8


@contextlib.contextmanager
def administrator(given: str, work: Path) -> Iterator[Path]:
    """Write the current context of KUBECONFIG in the one form that all helpers read.

    The written kubeconfig embeds the CA and authenticates by a token. If the user has a client
    certificate or a plugin instead, the token is that of a ServiceAccount, which is deleted at the
    end.
    """
    command = [str(kubectl_path()), "config", "view", "--minify", "--flatten", "--raw"]
    env = os.environ | {"KUBECONFIG": given}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, timeout=30)
    path = work / "kubeconfig"
    write_private(path, done.stdout)
    config = yaml.safe_load(done.stdout)
    user = config["users"][0]["user"]
    if "token" in user:
        yield path
        return
    with _account(path, work) as token:
        config["users"][0]["user"] = {"token": token}
        own = work / "token.kubeconfig"
        write_private(own, yaml.safe_dump(config).encode())
        yield own


@contextlib.contextmanager
def _account(kubeconfig: Path, work: Path) -> Iterator[str]:
    """Create a ServiceAccount with all rights, yield a token for it, and delete it at the end."""
    backend = Backend("cluster", kubeconfig, kubeconfig, None)
    name = f"test-{backend.run}"
    cluster = Cluster(backend, name, work)
    metadata: dict[str, Any] = {"name": name, "labels": {TEST_LABEL: backend.run}}
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": name}],
    }
    cluster.kubectl_apply(backend.namespace(name=name))
    try:
        cluster.kubectl_apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        cluster.kubectl_apply(binding)
        yield cluster.kubectl("create", "token", name, f"--duration={TOKEN_HOURS}h").strip()
    finally:
        cluster.run("delete", "clusterrolebinding", name)
        cluster.run("delete", "namespace", name, timeout=90)
