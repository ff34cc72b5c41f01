"""Installs releases of the charts with a real Helm in a namespace of the test's cluster."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.charts.helmcharts import HELMS, Json
from tests.support.kube.cluster import Cluster


@dataclass
class Release:
    """A namespace for releases, and the Helm that installs them."""

    cluster: Cluster
    program: str
    """The Helm to run, a key of HELMS."""
    work: Path

    def helm(self, *arguments: str, values: Json | None = None) -> str:
        """Run helm, which must succeed, and return its output."""
        done = self.run(*arguments, values=values)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def run(self, *arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm; the exit code is not checked."""
        command = [str(HELMS[self.program]()), *arguments]
        command += ["--namespace", self.cluster.namespace]
        if values is not None:
            path = self.work / "values.yaml"
            path.write_text(yaml.safe_dump(values))
            command += ["-f", str(path)]
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.work),
            "KUBECONFIG": str(self.cluster.kubeconfig),
        }
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
