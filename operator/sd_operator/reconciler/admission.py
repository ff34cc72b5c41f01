"""Keeps the queue of the models that wait for their load to be admitted.

If a model is admitted or its position changes, a pass over it is started. The running loads are
read from the cache of Jobs, so a restarted operator counts them. An admitted model counts as a load
until its Job is in the cache, or until it no longer wants to load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sd_operator.reconciler.cache import ObjectCache
from sd_operator.rules import queue
from sd_operator.rules.queue import Limits, Waiting

SETTLE_SECONDS = 0.05
"""How long the queue waits for further changes before it is evaluated."""
SETTLE_MAX_SECONDS = 1.0
"""Longest time from the first change to the evaluation of the queue."""


@dataclass(frozen=True)
class Admission:
    """Whether a model may load now."""

    admitted: bool
    position: int = 0
    """The rounded position in the queue that users see; 0 if the model has none."""


class AdmissionQueue:
    """The queue of one operator. Changes within a short time lead to one evaluation."""

    def __init__(
        self, limits: Limits, cache: ObjectCache, wake: Callable[[Iterable[str]], None]
    ) -> None:
        self._limits = limits
        self._cache = cache
        self._wake = wake
        self._waiting: dict[str, Waiting] = {}
        self._admitted: dict[str, str] = {}
        """The namespaces of the admitted models without a Job, by uid."""
        self._known: dict[str, Admission] = {}
        """The last admission that was determined for each waiting model, by uid."""
        self._asking: set[str] = set()
        """The models whose pass waits in `ask`: no other pass over them needs to start."""
        self._settled: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def limited(self) -> bool:
        """Whether the number of loads has a limit, so that models may have to wait."""
        return self._limits != Limits()

    def admission(self, uid: str) -> Admission:
        """Return a model's admission as of the last evaluation."""
        if not self.limited or uid in self._admitted:
            return Admission(admitted=True)
        return self._known.get(uid, Admission(admitted=False))

    async def ask(self, model: Waiting) -> Admission:
        """Put a model into the queue, and return its admission after the next evaluation.

        If the queue already has this model with the same values, return its admission as of the
        last evaluation.
        """
        if not self.limited or model.uid in self._admitted:
            return Admission(admitted=True)
        if self._waiting.get(model.uid) != model or model.uid not in self._known:
            self._waiting[model.uid] = model
            self._asking.add(model.uid)
            await asyncio.shield(self._settle_soon())
        return self.admission(model.uid)

    def leave(self, uid: str) -> None:
        """Take a model out of the queue: it does not want to load, or its Job is in the cache."""
        self._known.pop(uid, None)
        left = self._waiting.pop(uid, None)
        if self._admitted.pop(uid, None) is not None or left is not None:
            self.changed()

    def changed(self) -> None:
        """Schedule an evaluation of the queue, because the running loads may have changed."""
        if self._waiting:
            self._settle_soon()

    def close(self) -> None:
        """Cancel the scheduled evaluation."""
        if self._timer is not None:
            self._timer.cancel()

    def _settle_soon(self) -> asyncio.Future[None]:
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
        changed = []
        for model in admitted:
            del self._waiting[model.uid]
            self._known.pop(model.uid, None)
            self._admitted[model.uid] = model.namespace
            changed.append(model.uid)
        for position, model in enumerate(others, start=1):
            admission = Admission(admitted=False, position=queue.shown_position(position))
            if self._known.get(model.uid) != admission:
                self._known[model.uid] = admission
                changed.append(model.uid)
        if settled is not None and not settled.done():
            settled.set_result(None)
        asking, self._asking = self._asking, set()
        self._wake(uid for uid in changed if uid not in asking)
