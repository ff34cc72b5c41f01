"""One supervised task per model: wake-ups coalesce, errors back off, nothing dies or leaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 60.0

Reconcile = Callable[[str], Awaitable[float]]
"""One pass over a model, named by its uid; returns the seconds until the next."""


@dataclass(frozen=True)
class _Worker:
    wanted: asyncio.Event
    task: asyncio.Task[None]


class Supervisor:
    """Runs `reconcile` for every model that was woken and not dropped, one pass at a time each."""

    def __init__(self, reconcile: Reconcile) -> None:
        self._reconcile = reconcile
        self._workers: dict[str, _Worker] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, uid: str) -> bool:
        return uid in self._workers

    def start(self, uid: str) -> None:
        """Run a pass soon, and keep the model from now on."""
        worker = self._workers.get(uid)
        if worker is None:
            wanted = asyncio.Event()
            task = asyncio.create_task(self._run(uid, wanted), name=f"model {uid}")
            self._workers[uid] = _Worker(wanted, task)
        else:
            worker.wanted.set()

    def wake(self, uids: Iterable[str]) -> None:
        """Run a pass soon for those of them that are kept."""
        for uid in uids:
            if uid in self._workers:
                self.start(uid)

    def drop(self, uid: str) -> None:
        """End a model's task; a task may drop itself."""
        worker = self._workers.pop(uid, None)
        if worker is not None and worker.task is not asyncio.current_task():
            worker.task.cancel()

    async def close(self) -> None:
        """End all tasks."""
        tasks = [worker.task for worker in self._workers.values()]
        self._workers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, uid: str, wanted: asyncio.Event) -> None:
        failures = 0
        while True:
            wanted.clear()
            try:
                delay = await self._reconcile(uid)
                failures = 0
            except Exception:
                log.exception("a pass over model %s failed", uid)
                delay = min(BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10), BACKOFF_MAX_SECONDS)
                failures += 1
            if uid not in self._workers:
                return
            try:
                await asyncio.wait_for(wanted.wait(), delay)
            except TimeoutError:
                continue
