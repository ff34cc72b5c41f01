"""Runs of kubectl by the plugin, without kubectl."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from sd_operator.cli.kubectl import Kubectl, KubectlError


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda plugin: plugin.list("pods"), id="get"),
        pytest.param(lambda plugin: plugin.may("list", "pods", "art"), id="auth can-i"),
    ],
)
def test_kubectl_that_does_not_end_is_an_error_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Kubectl], object]
) -> None:
    """The message asks about the cluster. It comes from every command that kubectl runs."""

    def run(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/kubectl")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(KubectlError, match=r"did not finish within 30 s; is the cluster up\?"):
        call(Kubectl())
