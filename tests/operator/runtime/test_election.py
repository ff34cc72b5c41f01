"""Tests of the election's two loops with a scripted Lease, and of the Lease itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devkit.loopback import Answer, HangUpError, Loopback, Request
from sd_operator.clients import lease
from sd_operator.clients.lease import Lease
from sd_operator.runtime import election
from tests.support.kube.cluster import Cluster
from tests.support.kube.kubeconfig import write_kubeconfig


class Scripted(Lease):
    """A Lease with scripted results: held, held by another, or a problem."""

    identity = "us"

    def __init__(self, answers: Iterable[str]) -> None:
        self.answers = iter(answers)
        self.asked = 0
        self._holder = self._problem = ""

    @property
    def holder(self) -> str:
        """The last holder."""
        return self._holder

    @property
    def problem(self) -> str:
        """Why the last request failed."""
        return self._problem

    async def hold(self) -> bool:
        """Return the next scripted result."""
        self.asked += 1
        answer = next(self.answers)
        self._problem = ""
        if answer == "hang":
            await asyncio.sleep(3600)
        if answer == "problem":
            self._problem = "get Lease: no answer"
        else:
            self._holder = answer
        return answer == "us"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(election, "RENEW_SECONDS", 0.2)


def keep(*answers: str) -> tuple[str, int]:
    """Return why our Lease was lost with these results, and how often it was requested."""
    lease = Scripted(answers)
    return asyncio.run(asyncio.wait_for(election.keep(lease), 5)), lease.asked


def test_a_lease_that_cannot_be_renewed_is_lost() -> None:
    """The leader gives up after failures for RENEW_SECONDS. A single failure does no harm."""
    why, asked = keep("us", "problem", "us", *["problem"] * 100)
    assert why.endswith("could not be renewed for 0 s: get Lease: no answer")
    assert 4 < asked < 20


def test_a_renewal_that_hangs_loses_the_lease() -> None:
    """The deadline applies even while a request is still waiting."""
    why, asked = keep("us", "hang")
    assert "could not be renewed" in why
    assert asked == 2


def test_a_lease_that_another_holds_is_lost_at_once() -> None:
    """The loss is reported at once if another candidate has the Lease, as after a suspension."""
    assert keep("us", "them") == ("them leads now", 2)


def acquire(*answers: str, stop_after: float = 5) -> tuple[bool, int, int]:
    """Return whether the Lease became ours, and how often it was requested and readable."""
    lease = Scripted(answers)
    ready: list[None] = []

    async def scenario() -> bool:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(stop_after, stop.set)
        return await election.acquire(lease, stop, lambda: ready.append(None))

    held = asyncio.run(asyncio.wait_for(scenario(), 5))
    return held, lease.asked, len(ready)


def test_a_standby_waits_for_the_lease() -> None:
    """A standby requests the Lease until it gets it, and is ready once it can read the Lease."""
    assert acquire("problem", "them", "them", "us") == (True, 4, 2)


def test_a_standby_takes_the_lease_when_it_lapses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standby does not wait for its next regular attempt."""
    monkeypatch.setattr(election, "RETRY_SECONDS", 60)

    async def scenario() -> bool:
        lease = Scripted(["them", "us"])
        lease.lapses_in = 0.1
        return await election.acquire(lease, asyncio.Event(), lambda: None)

    assert asyncio.run(asyncio.wait_for(scenario(), 5))


def test_a_standby_ends_on_request() -> None:
    """The standby ends without becoming the leader."""
    held, _, _ = acquire(*["them"] * 1000, stop_after=0.1)
    assert not held


def test_the_log_shows_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """While nothing changes, a standby logs nothing."""
    caplog.set_level("INFO")
    acquire("them", "them", "problem", "problem", "they", "they", "us")
    assert [record.getMessage() for record in caplog.records] == [
        "standing by; them leads",
        "the election cannot be held: get Lease: no answer",
        "standing by; they leads",
        "leading, as us",
    ]


# The Lease, on an API server.


@dataclass
class Candidates:
    """Opens Leases of one namespace on one event loop."""

    kubeconfig: Path
    namespace: str
    counted: list[tuple[str, str, str]] = field(default_factory=list)

    async def open(self) -> Lease:
        """Return the opened Lease of a new candidate."""
        count = lambda *what: self.counted.append(what)  # noqa: E731 - it is given on
        return await Lease.open(self.kubeconfig, self.namespace, count)

    def run(self, scenario: Callable[[Lease, Lease], Awaitable[None]]) -> None:
        """Run a scenario of two candidates."""

        async def both() -> None:
            async with await self.open() as one, await self.open() as other:
                await asyncio.wait_for(scenario(one, other), 30)

        asyncio.run(both())


@pytest.fixture
def candidates(cluster: Cluster) -> Candidates:
    """Candidates in a namespace of their own."""
    return Candidates(cluster.kubeconfig, cluster.namespace)


@pytest.mark.cluster
def test_a_candidate_holds_the_lease_until_it_releases_it(
    candidates: Candidates, cluster: Cluster
) -> None:
    """Renewing keeps the Lease; releasing it clears the holder for the next candidate."""

    async def scenario(one: Lease, other: Lease) -> None:
        assert await one.hold()
        assert not await other.hold()
        assert (other.holder, other.problem) == (one.identity, "")
        assert await one.hold()
        await other.release()
        spec = cluster.get("lease", "sd-operator")["spec"]
        assert spec["holderIdentity"] == one.identity, "only one's own"
        assert spec["leaseDurationSeconds"] == 9
        await one.release()
        assert "holderIdentity" not in cluster.get("lease", "sd-operator")["spec"]
        assert await other.hold()
        assert not await one.hold()

    candidates.run(scenario)
    managed = cluster.kubectl(
        "get", "lease", "sd-operator", "--show-managed-fields", "-o=jsonpath={..manager}"
    )
    assert set(managed.split()) <= {"sd-operator"}
    verbs = {verb for verb, _, _ in candidates.counted}
    assert verbs == {"get", "create", "update"}


@pytest.mark.cluster
def test_a_standby_knows_when_the_lease_lapses(candidates: Candidates) -> None:
    """The standby's own clock counts the time from the last renewal that the standby saw."""

    async def scenario(one: Lease, other: Lease) -> None:
        assert await one.hold()
        assert one.lapses_in == 0
        assert not await other.hold()
        first = other.lapses_in
        assert 8 < first <= lease.DURATION_SECONDS
        await asyncio.sleep(0.5)
        assert not await other.hold()
        assert other.lapses_in <= first - 0.5
        await one.release()
        assert await other.hold()
        assert other.lapses_in == 0

    candidates.run(scenario)


@pytest.mark.cluster
def test_one_of_two_simultaneous_candidates_leads(candidates: Candidates) -> None:
    """The API server rejects the other's request, which is not logged as a problem."""

    async def scenario(one: Lease, other: Lease) -> None:
        held = await asyncio.gather(one.hold(), other.hold())
        assert sorted(held) == [False, True]
        assert (one.problem, other.problem) == ("", "")

    candidates.run(scenario)


@pytest.mark.cluster
def test_a_missing_namespace_is_the_problem_of_the_lease(candidates: Candidates) -> None:
    """The Lease's `problem` quotes the API server's message about the missing namespace."""
    candidates.namespace = "nowhere"

    async def scenario(one: Lease, _: Lease) -> None:
        assert not await one.hold()
        assert one.problem == 'create Lease nowhere/sd-operator: namespaces "nowhere" not found'

    candidates.run(scenario)


def test_an_unavailable_api_server_is_a_problem_and_not_an_exception(tmp_path: Path) -> None:
    """The Lease is not held, and the problem says why."""
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")

    async def scenario(one: Lease, _: Lease) -> None:
        assert not await one.hold()
        assert one.problem.startswith("get Lease ops/sd-operator: ")
        await one.release()

    Candidates(tmp_path / "kubeconfig", "ops").run(scenario)


def test_an_api_server_that_hangs_is_named_as_the_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`problem` keeps the last error while the next request is pending.

    `keep` may time out then, and reports it.
    """
    monkeypatch.setattr(lease, "REQUEST_SECONDS", 0.1)
    silent = threading.Event()

    def respond(_: Request) -> Answer:
        silent.wait(10)
        raise HangUpError

    async def scenario(one: Lease, _: Lease) -> None:
        assert not await one.hold()
        assert one.problem == "get Lease ops/sd-operator: no response within 0.1 s"
        monkeypatch.setattr(lease, "REQUEST_SECONDS", 60)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(one.hold(), 0.1)
        assert one.problem == "get Lease ops/sd-operator: no response within 0.1 s"
        silent.set()

    with Loopback(respond) as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        Candidates(tmp_path / "kubeconfig", "ops").run(scenario)
