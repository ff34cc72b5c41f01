"""Tests of standalone that is killed and started again, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sd_operator.standalone.database import Database
from tests.support.kube.rawapi import RawApi
from tests.support.kube.stubjobs import FAIL_AT_ONCE, job
from tests.support.paths import ROOT
from tests.support.processes import start, stop

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

HERE = ROOT / "tests/support/kube"
JOBS, PODS = "/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"


class Standalone:
    """A standalone without operator that keeps its objects, and whose loader is stubloader.py."""

    def __init__(self, folder: Path) -> None:
        self.kubeconfig, self.log = folder / "kubeconfig", folder / "log"
        self.store = folder / "store"
        self.state = folder / "state"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RawApi:
        """Start it, and wait until it is ready."""
        self.log.write_text("")
        command = [sys.executable, str(HERE / "localcluster.py"), "serve"]
        command += ["--store", str(self.store), "--kubeconfig", str(self.kubeconfig)]
        command += ["--state", str(self.state)]
        command += ["--loader", sys.executable, str(HERE / "stubloader.py")]
        self.process = start(command, self.log)
        wait(lambda: "Press Ctrl-C" in self.log.read_text())
        return RawApi(self.kubeconfig)

    def kill(self) -> None:
        """Kill it at once."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait(reached) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[Standalone]:
    """A standalone that has not been started."""
    standalone = Standalone(tmp_path)
    yield standalone
    if standalone.process is not None:
        stop(standalone.process)


def test_job_of_a_killed_run_starts_another_pod(standalone):
    """After the restart, another Pod runs although the Job allows no failure.

    The Pod of the killed run was disrupted, which does not count as a failure.
    """
    api = standalone.start()
    server = standalone.kubeconfig.read_text()
    body = job("j", "convert.sleep=60", podFailurePolicy=FAIL_AT_ONCE)
    created = api.ask("POST", JOBS, body).body
    wait(lambda: _runs(api, but_not=""))
    (first,) = api.ask("GET", PODS).body["items"]

    standalone.kill()
    api = standalone.start()

    assert standalone.kubeconfig.read_text() == server
    wait(lambda: _runs(api, but_not=first["metadata"]["uid"]))
    pods = {pod["metadata"]["uid"]: pod for pod in api.ask("GET", PODS).body["items"]}
    lost = pods.pop(first["metadata"]["uid"])["status"]
    assert (lost["phase"], lost["reason"]) == ("Failed", "NodeLost")
    assert lost["startTime"] == first["status"]["startTime"]
    assert lost["initContainerStatuses"] == first["status"]["initContainerStatuses"]
    assert lost["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    conditions = {condition["type"]: condition["status"] for condition in lost["conditions"]}
    assert conditions["DisruptionTarget"] == "True"
    assert len(pods) == 1
    again = api.ask("GET", f"{JOBS}/j").body
    assert again["metadata"]["uid"] == created["metadata"]["uid"]
    assert "failed" not in again["status"]
    log = f"{PODS}/{first['metadata']['name']}/log?container=fetch"
    assert api.ask("GET", log).code == 200
    old = first["metadata"]["resourceVersion"]
    (event,) = api.ask("GET", f"{PODS}?watch=1&resourceVersion={old}&timeoutSeconds=5").events
    assert event["object"]["code"] == 410
    assert api.ask("DELETE", f"{JOBS}/j?propagationPolicy=Background").code == 200


def _runs(api: RawApi, but_not: str) -> bool:
    """Return whether a Pod runs its main container, not counting the Pod with this uid."""
    pods = [p for p in api.ask("GET", PODS).body["items"] if p["metadata"]["uid"] != but_not]
    states = [
        entry["state"] for pod in pods for entry in pod["status"].get("containerStatuses", ())
    ]
    return any("running" in state for state in states)


def test_garbage_of_a_killed_run_is_collected(standalone):
    """Dependents are deleted after the restart if their owner was deleted before the kill."""
    api = standalone.start()
    owner = api.ask("POST", JOBS, job("owner", suspend=True)).body["metadata"]
    dependent = {"name": "owner", "kind": "Job", "apiVersion": "batch/v1", "uid": owner["uid"]}
    meta = {"name": "s", "ownerReferences": [dependent]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
    secrets = "/api/v1/namespaces/default/secrets"
    assert api.ask("POST", secrets, secret).code == 201
    standalone.kill()
    with closing(Database.open(standalone.state / "objects.db")) as database:
        database.remove(("jobs", "batch"), ("default", "owner"), owner["uid"])

    api = standalone.start()

    wait(lambda: api.ask("GET", f"{secrets}/s").code == 404)
