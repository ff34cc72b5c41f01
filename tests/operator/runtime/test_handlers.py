"""What kopf gets from the operator."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sd_operator.base.settings import Settings
from sd_operator.runtime.handlers import connection
from tests.support.kube.kubeconfig import write_kubeconfig


def test_every_login_reads_the_credentials_again(tmp_path: Path) -> None:
    """After status 401, kopf logs in again. By then, Kubernetes may have replaced the token."""
    settings = Settings(tmp_path / "kubeconfig")
    for token in ("first", "second"):
        write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", token)
        assert asyncio.run(connection(settings)).token == token
