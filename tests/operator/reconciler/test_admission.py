"""The admission queue: its order, its limit, and which models get a pass after a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

from sd_api import names
from sd_operator.reconciler.admission import Admission, AdmissionQueue
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules.queue import Limits, Waiting
from tests.support.rules.observed import NOW, job

ADMITTED = Admission(admitted=True)


def of(uid: str, /, **fields: object) -> JobView:
    """Return the load Job of a model."""
    return job(**{"uid": f"job-{uid}", "model_uid": uid} | fields)


class Line:
    """A queue with its cache, and the uids of the models for which it requested a pass."""

    def __init__(self, limit: int = 1) -> None:
        self.cache = ObjectCache()
        self.woken: list[str] = []
        self.queue = AdmissionQueue(Limits(limit), self.cache, self.woken.extend)

    def put(self, job: JobView) -> None:
        """Put a Job into the cache, and record its uid as that of its model's Job."""
        self.cache.put_job(job)
        self.cache.record(job.model_uid, job.uid)

    def ask(self, uid: str, priority: int = 0) -> Awaitable[Admission]:
        """Request admission for a model; `a` was created before `b`."""
        created = NOW + timedelta(seconds=ord(uid))
        return asyncio.ensure_future(self.queue.ask(Waiting(uid, "art", priority, created)))


def run(scenario: Callable[[Line], Awaitable[None]], limit: int = 1) -> None:
    """Run a scenario with a time limit."""

    async def bounded() -> None:
        line = Line(limit)
        async with asyncio.timeout(10):
            await scenario(line)
        line.queue.close()

    asyncio.run(bounded())


def test_simultaneous_requests_are_decided_together() -> None:
    """Priority decides between models that ask at the same moment. No further pass is requested."""

    async def scenario(line: Line) -> None:
        asked = [line.ask("a"), line.ask("b"), line.ask("c", priority=1)]
        turns = await asyncio.gather(*asked)
        assert turns == [Admission(False, 1), Admission(False, 2), ADMITTED]
        assert line.woken == []
        assert len(line.queue) == 2

    run(scenario)


def test_the_next_model_is_admitted_when_a_load_ends() -> None:
    """After the admitted model has left the queue, its running Job counts towards the limit."""

    async def scenario(line: Line) -> None:
        await asyncio.gather(line.ask("a"), line.ask("b"), line.ask("c"))
        line.put(of("a"))
        line.queue.leave("a")
        await asyncio.sleep(0.1)
        assert line.woken == [], "the Job counts in its model's stead"
        ended = of("a", state=JobState.COMPLETE, resource_version="2")
        line.cache.put_job(ended)
        line.queue.changed()
        await asyncio.sleep(0.1)
        assert line.woken == ["b", "c"], "the one may load, the other has come nearer"
        assert (line.queue.admission("b"), line.queue.admission("c")) == (
            ADMITTED,
            Admission(False, 1),
        )

    run(scenario)


def test_a_running_load_counts_from_the_start() -> None:
    """A restarted operator counts existing Jobs before the first pass over any model."""

    async def scenario(line: Line) -> None:
        line.put(of("z"))
        assert await line.ask("a") == Admission(False, 1)
        line.cache.drop_job(of("z"))
        line.queue.changed()
        await asyncio.sleep(0.1)
        assert line.woken == ["a"]

    run(scenario)


def test_only_loads_count_towards_the_limit() -> None:
    """The limit ignores clean-up Jobs, ended Jobs and models that have left the queue."""

    async def scenario(line: Line) -> None:
        line.put(replace(of("x"), role=names.ROLE_REMOVE))
        line.put(of("y", state=JobState.FAILED))
        assert await line.ask("a") == ADMITTED
        line.queue.leave("a")
        assert await line.ask("b") == ADMITTED

    run(scenario)


def test_a_job_that_no_status_records_does_not_count() -> None:
    """A Job that only has the label of a model does not count towards the limit.

    Anyone who may create Jobs can give them this label, even that of a model that does not exist.
    """

    async def scenario(line: Line) -> None:
        line.put(of("w", state=JobState.COMPLETE))
        for forged in (of("w", uid="forged"), of("x"), of("nobody", owner_uid="")):
            line.cache.put_job(forged)
        assert await line.ask("a") == ADMITTED
        assert line.cache.active_jobs() == 0

    run(scenario)


def test_a_model_that_leaves_lets_the_others_move_up() -> None:
    """A model leaves the queue when it is suspended or deleted."""

    async def scenario(line: Line) -> None:
        await asyncio.gather(line.ask("a"), line.ask("b"), line.ask("c"))
        line.queue.leave("b")
        await asyncio.sleep(0.1)
        assert line.woken == ["c"]
        assert line.queue.admission("c") == Admission(False, 1)

    run(scenario)


def test_a_changed_priority_counts_at_once() -> None:
    """The order is decided again with the new priority."""

    async def scenario(line: Line) -> None:
        await asyncio.gather(line.ask("a"), line.ask("b"), line.ask("c"))
        assert await line.ask("c", priority=9) == Admission(False, 1)
        assert line.woken == ["b"]

    run(scenario)


def test_without_limits_every_model_is_admitted_at_once() -> None:
    """A model is admitted without entering the queue."""

    async def scenario(_: Line) -> None:
        turns = AdmissionQueue(Limits(), ObjectCache(), lambda _: None)
        assert turns.admission("a") == ADMITTED
        assert len(turns) == 0

    run(scenario)


def test_a_busy_queue_still_admits_models() -> None:
    """A model is admitted in spite of a continuous stream of changes."""

    async def scenario(line: Line) -> None:
        turn = line.ask("a")

        async def disturb() -> None:
            while True:
                line.queue.changed()
                await asyncio.sleep(0.01)

        busy = asyncio.create_task(disturb())
        assert await turn == ADMITTED
        busy.cancel()

    run(scenario)
