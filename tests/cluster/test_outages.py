"""The API server, rights, Jobs, Pods or PVCs disappear during a model's life and return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sd_api import names
from tests.support.kube.cluster import claim_manifest
from tests.support.kube.rights import Right
from tests.support.kube.stubjobs import has_condition
from tests.support.operator.operated import condition
from tests.support.operator.operators import Behind

pytestmark = pytest.mark.cluster

Json = dict[str, Any]


class Outage:
    """A model with an operator that is restarted whenever it ends."""

    def __init__(self, behind: Behind) -> None:
        self.cluster = behind.cluster
        self.proxy = behind.proxy
        self.receiver = behind.receiver
        self.operators = behind.operators
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Stop restarting the operator."""
        self._over.set()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            self.operators.keep()

    def load(self, seconds: float = 0.0, name: str = "sketch") -> None:
        """Create a model whose load takes some seconds."""
        url = f"https://models.example.com/{name}?seconds={seconds}"
        self.cluster.model(name, url=url, webhook=self.receiver.url)

    def until(self, reached: Callable[[Json], object]) -> Json:
        """Wait until a condition on the model holds."""
        return self.cluster.wait_for("sdm", "sketch", reached)

    def ready(self) -> Json:
        """Wait until the model is Ready and no load is under way."""
        return self.until(
            lambda one: (
                condition(one, "Ready").get("status") == "True"
                and not condition(one, "Reconciling")
            )
        )

    def stalled(self, reason: str) -> Json:
        """Wait until the model is stalled for this reason."""
        return self.until(lambda one: condition(one, "Stalled").get("reason") == reason)

    def jobs(self) -> list[Json]:
        """Return the loader Jobs."""
        return self.cluster.list("jobs", labelSelector=f"{names.LABEL_ROLE}=load")

    def pod(self) -> str:
        """Return the name of the loader's Pod once its main container runs."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for pod in self.cluster.list("pods"):
                main = pod.get("status", {}).get("containerStatuses") or [{}]
                if "running" in main[0].get("state", {}):
                    return str(pod["metadata"]["name"])
            time.sleep(0.1)
        raise AssertionError(self.cluster.list("pods"))

    def ended(self) -> str:
        """Return the name of the Job once it has succeeded."""
        (job,) = self.jobs()
        name = str(job["metadata"]["name"])
        self.cluster.wait_for("job", name, has_condition("Complete"))
        return name

    @property
    def work_done(self) -> int:
        """Return how many loads did any work."""
        marks = (self.cluster.store / "loads").glob("sketch-*")
        return sum(len(mark.read_text()) for mark in marks)


@pytest.fixture
def outage(behind: Behind) -> Iterator[Outage]:
    """An operator that is restarted whenever it ends, until the test ends."""
    made = Outage(behind)
    yield made
    made.close()


def test_a_job_that_ends_during_an_outage_is_found(outage: Outage) -> None:
    """The operator finds the ended Job after the outage and does not load the model again."""
    outage.load(seconds=1)
    outage.pod()
    outage.proxy.leave()
    outage.ended()
    outage.proxy.come_back()
    assert outage.ready()["status"]["job"]["attempt"] == 0
    assert (len(outage.jobs()), outage.work_done) == (1, 1)
    assert outage.operators.deaths == 0


@pytest.mark.slow
def test_a_job_that_is_deleted_during_an_outage_is_not_repeated(outage: Outage) -> None:
    """The receipt on the volume gives the result of the lost Job, so no work is repeated."""
    outage.load(seconds=1)
    outage.pod()
    outage.proxy.leave()
    name = outage.ended()
    outage.cluster.delete("job", name)
    outage.cluster.wait_gone("job", name)
    outage.proxy.come_back()
    assert outage.ready()["status"]["job"]["attempt"] == 1
    assert outage.work_done == 1


@pytest.mark.slow
def test_a_model_recreated_while_the_operator_is_down_is_new(outage: Outage) -> None:
    """The running Job of the previous model does not count as a Job of the new one."""
    outage.load(seconds=60)
    outage.pod()
    outage.proxy.leave()
    outage.cluster.delete("sdm", "sketch")
    outage.cluster.release("sketch")
    outage.cluster.wait_gone("sdm", "sketch")
    outage.operators.kill()
    outage.load()
    outage.proxy.come_back()
    item = outage.ready()
    assert item["metadata"]["uid"] in item["status"]["artifact"]["immutablePath"]
    assert item["status"]["job"]["attempt"] == 0


@pytest.mark.slow
def test_rights_are_taken_away_and_given_back(outage: Outage) -> None:
    """The operator retries, logs the cause, and continues once it has the rights."""
    outage.load(seconds=1)
    outage.pod()
    outage.proxy.forbid(lambda _: True)
    outage.ended()
    deadline = time.monotonic() + 30
    while "cannot list jobs" not in outage.cluster.operator_log():
        assert time.monotonic() < deadline, outage.cluster.operator_log()
        time.sleep(0.1)
    outage.proxy.forbid(lambda _: False)
    assert outage.ready()["status"]["job"]["attempt"] == 0
    assert outage.work_done == 1
    assert outage.operators.deaths == 0


@pytest.mark.slow
def test_a_missing_right_is_shown_until_it_is_granted(outage: Outage) -> None:
    """The status has the API server's message, and the load continues without an edit."""
    outage.proxy.forbid(lambda right: right == Right("batch", "jobs", "create"))
    outage.load()
    outage.until(lambda one: "cannot create jobs" in condition(one, "Ready").get("message", ""))
    outage.proxy.forbid(lambda _: False)
    outage.ready()


@pytest.mark.slow
def test_a_model_is_loaded_again_on_a_recreated_pvc(outage: Outage) -> None:
    """The model is not Ready while the PVC is missing, and is loaded onto the new PVC."""
    outage.load()
    first = outage.ready()["status"]["artifact"]["claimUID"]
    outage.cluster.delete("pvc", "models")
    outage.stalled("ClaimNotFound")
    outage.cluster.apply(claim_manifest())
    outage.until(lambda one: one["status"].get("artifact", {}).get("claimUID") not in (None, first))
    assert not condition(outage.ready(), "Stalled")


@pytest.mark.slow
def test_an_evicted_pod_is_followed_by_another(outage: Outage) -> None:
    """The same Job continues the load, and the eviction does not count as an attempt."""
    outage.load(seconds=3)
    outage.cluster.delete("pod", outage.pod())
    item = outage.ready()
    assert item["status"]["job"]["attempt"] == 0
    assert (len(outage.jobs()), outage.work_done) == (1, 1)


@pytest.mark.slow
def test_a_namespace_is_deleted_in_mid_load(outage: Outage) -> None:
    """The load is stopped, and the namespace's deletion completes."""
    outage.load(seconds=60)
    outage.pod()
    name = outage.cluster.namespace
    outage.cluster.delete("namespace", name)
    outage.cluster.wait_gone("namespace", name)


@pytest.mark.slow
def test_a_model_is_deleted_in_mid_load(outage: Outage) -> None:
    """After a deletion during the load, no file of the model stays on the volume."""
    outage.load(seconds=60)
    outage.pod()
    outage.cluster.delete("sdm", "sketch")
    outage.cluster.wait_gone("sdm", "sketch")
    assert outage.work_done == 0
    assert not (outage.cluster.store / "sketch").is_symlink()
