"""Writes kubeconfigs, and reads those with a token."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml


def write_kubeconfig(path: Path, server: str, token: str = "token") -> None:
    """Write a kubeconfig with one cluster and one user."""
    config = {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path.write_text(yaml.safe_dump(config))


def credentials(kubeconfig: Path) -> tuple[str, str, str]:
    """Return the server, token and CA certificate (PEM) of a kubeconfig; no CA is ""."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    ca = base64.b64decode(cluster.get("certificate-authority-data", "")).decode()
    return cluster["server"], config["users"][0]["user"]["token"], ca
