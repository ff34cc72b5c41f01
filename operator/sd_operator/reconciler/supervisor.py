"""One supervised task for each model, which runs its passes. Retries after errors back off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable

from sd_operator.base.errors import ApiError

log = logging.getLogger(__name__)

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 60.0

Reconcile = Callable[[str], Awaitable[float]]
"""Runs a pass over the object with this key; returns the seconds until the next pass."""


class Supervisor:
    """Runs `reconcile` for every started model until the model is dropped, one pass at a time.

    All calls of `start` and `wake` during a pass lead to one more pass.
    Sweeps and checks use it, too: there the keys are names of namespaces and PVCs, not uids.
    """

    def __init__(self, reconcile: Reconcile, what: str = "model") -> None:
        self._reconcile = reconcile
        self._what = what
        """What the keys identify, for logs."""
        self._workers: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, uid: str) -> bool:
        return uid in self._workers

    def start(self, uid: str) -> None:
        """Supervise a model from now on and run a pass soon; do nothing once closed."""
        if self._closed:
            return
        wanted = self._workers.get(uid)
        if wanted is not None:
            wanted.set()
            return
        wanted = self._workers[uid] = asyncio.Event()
        task = asyncio.create_task(self._run(uid, wanted), name=f"{self._what} {uid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wake(self, uids: Iterable[str]) -> None:
        """Run a pass soon for each of these models that was started."""
        for uid in uids:
            if uid in self._workers:
                self.start(uid)

    def drop(self, uid: str) -> None:
        """Let a model's task end after its running pass, which may still emit Events."""
        wanted = self._workers.pop(uid, None)
        if wanted is not None:
            wanted.set()

    async def close(self) -> None:
        """End all tasks now, for good."""
        self._closed = True
        self._workers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, uid: str, wanted: asyncio.Event) -> None:
        failures = 0
        while self._is_kept(uid, wanted):
            wanted.clear()
            try:
                delay = await self._reconcile(uid)
                failures = 0
            except Exception as error:
                # An error of the API server explains itself; any other is a fault in the operator.
                ours = not isinstance(error, ApiError)
                log.error("a pass over %s %s failed: %s", self._what, uid, error, exc_info=ours)
                delay = min(BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10), BACKOFF_MAX_SECONDS)
                failures += 1
            with contextlib.suppress(TimeoutError):
                if self._is_kept(uid, wanted):
                    await asyncio.wait_for(wanted.wait(), delay)

    def _is_kept(self, uid: str, wanted: asyncio.Event) -> bool:
        return self._workers.get(uid) is wanted
