"""With two operators, one leads and the other takes over, and no work is done twice."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.support.operator.operated import Operated, loaded_once, told_once
from tests.support.operator.operators import probe

pytestmark = pytest.mark.cluster


class Pair:
    """A leader and a standby."""

    def __init__(self, operated: Operated) -> None:
        self.operated = operated
        self.leader = self.start()
        operated.eventually(lambda: "serving" in self.log(0))
        self.standby = self.start()
        operated.eventually(lambda: "standing by" in self.log(1))

    def start(self) -> subprocess.Popen[bytes]:
        """Start another operator that takes part in the election."""
        self.operated.start(
            SD_OPERATOR_LEADER_ELECTION="true",
            SD_OPERATOR_LEASE_NAMESPACE=self.operated.cluster.namespace,
        )
        assert self.operated.operator is not None
        return self.operated.operator

    def log(self, which: int) -> str:
        """Return the log of an operator."""
        return (self.operated.cluster.work / f"operator-{which}.log").read_text()

    def probe(self, which: int, path: str) -> int:
        """Return the status of an operator's probe."""
        return probe(self.log(which), path)

    def leads(self, which: int) -> bool:
        """Return whether an operator's metric says that it leads."""
        return self.operated.metrics(which).get(("sdmodel_leader",)) == 1

    def took_over(self, within: float) -> None:
        """Wait until the standby leads, and check that it does so within this many seconds."""
        begun = time.monotonic()
        self.operated.eventually(lambda: "serving" in self.log(1))
        assert time.monotonic() - begun < within


@pytest.fixture
def pair(light_operated: Operated) -> Pair:
    """A leader and a standby in the test's namespace."""
    return Pair(light_operated)


def test_a_standby_takes_over_from_a_killed_leader(pair: Pair, light_operated: Operated) -> None:
    """The standby leads within 15 s and does not repeat a load that ended in the meantime."""
    operated = light_operated
    assert (pair.leads(0), pair.leads(1)) == (True, False)
    assert (pair.probe(1, "/readyz"), pair.probe(1, "/healthz")) == (200, 200)
    url = operated.light_link("sketch", seconds=4)
    operated.cluster.model("sketch", url=url, webhook=operated.receiver.url)
    operated.in_phase("sketch", "Converting")
    pair.leader.kill()
    pair.took_over(within=15)
    operated.ready()
    loaded_once(operated)
    assert operated.light_loads("sketch") == 1
    told_once(operated)
    assert pair.leads(1)


@pytest.mark.slow
def test_a_standby_takes_over_at_once_from_a_leader_that_ends(
    pair: Pair, light_operated: Operated
) -> None:
    """SIGTERM releases the Lease, and the load continues."""
    operated = light_operated
    url = operated.light_link("sketch", seconds=4)
    operated.cluster.model("sketch", url=url, webhook=operated.receiver.url)
    operated.in_phase("sketch", "Converting")
    pair.leader.terminate()
    pair.took_over(within=5)
    assert pair.leader.wait(10) == 0
    assert "the Lease is given back" in pair.log(0)
    operated.ready()
    loaded_once(operated)
    assert operated.light_loads("sketch") == 1
    told_once(operated)


@pytest.mark.slow
def test_a_leader_whose_lease_is_taken_ends(pair: Pair, light_operated: Operated) -> None:
    """The leader exits with an error, so that it is restarted, and does not touch the Lease."""
    cluster = light_operated.cluster
    cluster.patch("lease", "sd-operator", {"spec": {"holderIdentity": "somebody"}})
    assert pair.leader.wait(10) == 1
    assert "somebody leads now" in pair.log(0)
    assert cluster.get("lease", "sd-operator")["spec"]["holderIdentity"] == "somebody"


@pytest.mark.slow
def test_a_standby_ends_on_sigterm(pair: Pair) -> None:
    """The leader is not affected."""
    pair.standby.terminate()
    assert pair.standby.wait(10) == 0
    assert pair.leads(0)
    assert pair.leader.poll() is None
