from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from sd_operator.reconciler import supervisor
from sd_operator.reconciler.supervisor import Supervisor

FOREVER = 3600.0


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario with a time limit."""

    async def bounded() -> None:
        async with asyncio.timeout(5):
            await scenario()

    asyncio.run(bounded())


def test_a_started_model_gets_a_pass_and_then_rests() -> None:
    """After its pass, a started model has no further pass until `wake` is called."""

    async def scenario() -> None:
        passes: list[str] = []

        async def reconcile(uid: str) -> float:
            passes.append(uid)
            return FOREVER

        supervisor = Supervisor(reconcile)
        supervisor.start("a")
        await asyncio.sleep(0.02)
        assert passes == ["a"]
        supervisor.wake(["a", "unknown"])
        await asyncio.sleep(0.02)
        assert passes == ["a", "a"]
        await supervisor.close()

    run(scenario)


def test_the_next_pass_starts_after_the_requested_delay() -> None:
    """Without `wake`, the next pass starts after the delay that the previous pass returned."""

    async def scenario() -> None:
        passed = asyncio.Event()
        count = 0

        async def reconcile(_: str) -> float:
            nonlocal count
            count += 1
            if count == 3:
                passed.set()
            return 0.01

        supervisor = Supervisor(reconcile)
        supervisor.start("a")
        await passed.wait()
        await supervisor.close()

    run(scenario)


def test_wake_ups_during_a_pass_make_one_more() -> None:
    """Several calls of `start` during a pass lead to one more pass, which starts after this one."""

    async def scenario() -> None:
        running = passes = 0
        release = asyncio.Event()

        async def reconcile(_: str) -> float:
            nonlocal running, passes
            running += 1
            passes += 1
            assert running == 1
            await release.wait()
            running -= 1
            return FOREVER

        supervisor = Supervisor(reconcile)
        supervisor.start("a")
        await asyncio.sleep(0)
        for _ in range(10):
            supervisor.start("a")
        release.set()
        await asyncio.sleep(0.02)
        assert passes == 2
        await supervisor.close()

    run(scenario)


def test_errors_are_logged_and_back_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The failed pass is tried again after growing delays, and other models are not affected."""
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_SECONDS", 0.01)
    caplog.set_level(logging.ERROR)

    async def scenario() -> None:
        calls: list[str] = []
        tried: list[float] = []
        good = asyncio.Event()

        async def reconcile(uid: str) -> float:
            calls.append(uid)
            if uid == "bad":
                tried.append(asyncio.get_running_loop().time())
            if uid == "bad" and calls.count("bad") < 3:
                raise ValueError("broken")
            if uid == "bad":
                good.set()
            return FOREVER

        supervisor = Supervisor(reconcile)
        supervisor.start("bad")
        supervisor.start("other")
        await good.wait()
        assert calls.count("other") == 1
        first, second = (later - sooner for sooner, later in pairwise(tried))
        assert first >= 0.01
        assert second >= 0.02
        await supervisor.close()

    run(scenario)
    assert len(caplog.records) == 2
    assert all("a pass over model bad failed" in one.getMessage() for one in caplog.records)


def test_a_dropped_model_finishes_its_pass_and_is_gone() -> None:
    """The pass that releases a model still emits its Event."""

    async def scenario() -> None:
        steps: list[str] = []

        async def reconcile(uid: str) -> float:
            steps.append("released")
            supervisor.drop(uid)
            await asyncio.sleep(0.01)
            steps.append("told")
            return FOREVER

        supervisor = Supervisor(reconcile)
        before = len(asyncio.all_tasks())
        supervisor.start("a")
        await asyncio.sleep(0.05)
        assert steps == ["released", "told"]
        assert "a" not in supervisor
        assert len(supervisor) == 0
        assert len(asyncio.all_tasks()) == before, "no task leaks"
        supervisor.wake(["a"])
        assert len(supervisor) == 0, "nothing wakes it again"

    run(scenario)


def test_a_resting_model_is_dropped_at_once() -> None:
    """The model's task ends without another pass."""

    async def scenario() -> None:
        passes = 0

        async def reconcile(_: str) -> float:
            nonlocal passes
            passes += 1
            return FOREVER

        supervisor = Supervisor(reconcile)
        before = len(asyncio.all_tasks())
        supervisor.start("a")
        await asyncio.sleep(0.01)
        supervisor.drop("a")
        await asyncio.sleep(0.01)
        assert passes == 1
        assert len(asyncio.all_tasks()) == before

    run(scenario)


def test_closing_ends_every_task_in_mid_pass() -> None:
    """`close` cancels the passes that run, and returns."""

    async def scenario() -> None:
        async def reconcile(_: str) -> float:
            await asyncio.sleep(FOREVER)
            return FOREVER

        supervisor = Supervisor(reconcile)
        before = len(asyncio.all_tasks())
        for uid in "abc":
            supervisor.start(uid)
        await asyncio.sleep(0.01)
        await supervisor.close()
        assert len(asyncio.all_tasks()) == before

    run(scenario)
