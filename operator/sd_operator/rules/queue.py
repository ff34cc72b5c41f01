"""Who may load now, and in which order the others follow. Pure.

The next turn is always that of the namespace with the fewest loads; among its models priority
decides, then age. So a namespace with a thousand models, or with the highest priorities, takes no
other's turn.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sd_operator.base.settings import Settings

STEPS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True)
class Limits:
    """How many loads may run at once; None means no limit."""

    cluster: int | None = None
    """In all namespaces together."""
    namespace: int | None = None
    """In each namespace."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """Read the limits; with Kueue there are none, since Kueue admits the Jobs."""
        if settings.loader.kueue_queue is not None:
            return cls()
        return cls(settings.max_loads or None, settings.max_loads_per_namespace or None)


@dataclass(frozen=True)
class Waiting:
    """A model that wants to load."""

    uid: str
    namespace: str
    priority: int
    created: datetime


def order(loading: Iterable[str], waiting: Iterable[Waiting]) -> list[tuple[Waiting, int]]:
    """All that wait, in the order of their turns, each with the loads of its namespace before it.

    loading: the namespace of each load that runs or has been let in.
    """
    counts = Counter(loading)
    lines: defaultdict[str, list[Waiting]] = defaultdict(list)
    for one in waiting:
        lines[one.namespace].append(one)
    for line in lines.values():
        line.sort(key=_rank, reverse=True)  # the next one is the last: pop is cheap there
    heap = [(counts[namespace], _rank(line[-1]), namespace) for namespace, line in lines.items()]
    heapq.heapify(heap)
    ordered = []
    while heap:
        count, _, namespace = heap[0]
        line = lines[namespace]
        ordered.append((line.pop(), count))
        if line:
            heapq.heapreplace(heap, (count + 1, _rank(line[-1]), namespace))
        else:
            heapq.heappop(heap)
    return ordered


def _rank(one: Waiting) -> tuple[int, datetime, str]:
    return (-one.priority, one.created, one.uid)


def admit(
    loading: Sequence[str], waiting: Iterable[Waiting], limits: Limits
) -> tuple[list[Waiting], list[Waiting]]:
    """Who may load now, and who waits on, both in order."""
    ordered = order(loading, waiting)
    # The loads of a namespace before each only grow along the order: whoever may load comes first.
    count = sum(
        _is_below(len(loading) + at, limits.cluster) and _is_below(before, limits.namespace)
        for at, (_, before) in enumerate(ordered)
    )
    models = [one for one, _ in ordered]
    return models[:count], models[count:]


def _is_below(count: int, limit: int | None) -> bool:
    return limit is None or count < limit


def step(position: int) -> int:
    """A position as it is shown: exact where it is short, else the next of a few round numbers.

    Each change of it is a status write. By steps a model writes a dozen times at most, however
    many wait before it.
    """
    return next((one for one in STEPS if position <= one), position)


def describe(shown: int) -> str:
    """A position in words."""
    if shown <= 3:
        return f"position {shown} in the queue"
    return f"among the next {shown} in the queue"
