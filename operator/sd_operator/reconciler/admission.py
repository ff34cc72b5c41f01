"""Keeps the queue: models ask for their turn, and those whose turn has come are woken.

What loads is read from the cache of Jobs, so a restarted operator counts what runs. A model that
was let in holds its place until its Job is seen, or until it wants no turn any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sd_operator.reconciler.cache import Cache
from sd_operator.rules import queue
from sd_operator.rules.queue import Limits, Waiting

SETTLE_SECONDS = 0.05
SETTLE_MAX_SECONDS = 1.0


@dataclass(frozen=True)
class Turn:
    """What the queue says to one model. place: its position, as it is shown."""

    admitted: bool
    place: int = 0


class Turns:
    """The queue of one operator. Changes that come together are judged together."""

    def __init__(self, limits: Limits, cache: Cache, wake: Callable[[Iterable[str]], None]) -> None:
        self._limits = limits
        self._cache = cache
        self._wake = wake
        self._waiting: dict[str, Waiting] = {}
        self._admitted: dict[str, str] = {}
        """The namespaces of the models that were let in and have no Job yet, by uid."""
        self._told: dict[str, Turn] = {}
        self._asking: set[str] = set()
        """Those whose pass waits for the answer: nobody has to wake them."""
        self._settled: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def limited(self) -> bool:
        """Whether anybody ever has to wait."""
        return self._limits != Limits()

    def turn(self, uid: str) -> Turn:
        """What was last said to a model; only who was let in may load."""
        if not self.limited or uid in self._admitted:
            return Turn(admitted=True)
        return self._told.get(uid, Turn(admitted=False))

    async def ask(self, one: Waiting) -> Turn:
        """Wait in the queue from now on; returns what it says to that, a moment later."""
        if not self.limited or one.uid in self._admitted:
            return Turn(admitted=True)
        if self._waiting.get(one.uid) != one or one.uid not in self._told:
            self._waiting[one.uid] = one
            self._asking.add(one.uid)
            await asyncio.shield(self._settle_soon())
        return self.turn(one.uid)

    def leave(self, uid: str) -> None:
        """A model wants no turn, or has used it: its Job is in the cache."""
        self._told.pop(uid, None)
        left = self._waiting.pop(uid, None)
        if self._admitted.pop(uid, None) is not None or left is not None:
            self.changed()

    def changed(self) -> None:
        """The loads that run may have changed: somebody else's turn may have come."""
        if self._waiting:
            self._settle_soon()

    def close(self) -> None:
        """Judge nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _settle_soon(self) -> asyncio.Future[None]:
        """Judge once nothing has changed for a moment; a second later at the latest."""
        loop = asyncio.get_running_loop()
        if self._settled is None:
            self._settled = loop.create_future()
            self._latest = loop.time() + SETTLE_MAX_SECONDS
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(min(loop.time() + SETTLE_SECONDS, self._latest), self._settle)
        return self._settled

    def _settle(self) -> None:
        settled, self._settled, self._timer = self._settled, None, None
        jobs = self._cache.active_loads()
        loading = [*jobs.values()]
        loading += [space for uid, space in self._admitted.items() if uid not in jobs]
        admitted, others = queue.admit(loading, self._waiting.values(), self._limits)
        news = []
        for one in admitted:
            del self._waiting[one.uid]
            self._told.pop(one.uid, None)
            self._admitted[one.uid] = one.namespace
            news.append(one.uid)
        for at, one in enumerate(others, start=1):
            turn = Turn(admitted=False, place=queue.step(at))
            if self._told.get(one.uid) != turn:
                self._told[one.uid] = turn
                news.append(one.uid)
        if settled is not None and not settled.done():
            settled.set_result(None)
        asking, self._asking = self._asking, set()
        self._wake(uid for uid in news if uid not in asking)
