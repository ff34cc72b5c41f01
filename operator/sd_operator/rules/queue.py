"""Decides which models may load now, and in which order the other models follow. Pure.

The next model always belongs to a namespace with the fewest loads. Among several such models, the
priority decides, then the age. So a namespace with a thousand models, or with the highest
priorities, does not keep the models of other namespaces waiting.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sd_operator.base.settings import Settings
from sd_operator.resources.model import Model

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
        """Return the limits of the settings; no limits with Kueue, since Kueue admits the Jobs."""
        if settings.loader.kueue_queue is not None:
            return cls()
        return cls(settings.max_loads or None, settings.max_loads_per_namespace or None)


@dataclass(frozen=True)
class Waiting:
    """A model in the queue."""

    uid: str
    namespace: str
    priority: int
    """spec.priority: the highest goes first within its namespace."""
    created: datetime
    """Of two models with the same priority, the older one goes first."""

    @classmethod
    def of(cls, model: Model) -> Waiting:
        """Return a model's entry in the queue."""
        priority = model.spec.priority if model.spec else 0
        return cls(model.uid, model.namespace, priority, model.created)


def order(loading: Iterable[str], waiting: Iterable[Waiting]) -> list[tuple[Waiting, int]]:
    """Return the models in order, each with the number of loads of its namespace that come first.

    loading: the namespace of each load that runs or was admitted.
    """
    counts = Counter(loading)
    lines: defaultdict[str, list[Waiting]] = defaultdict(list)
    for model in waiting:
        lines[model.namespace].append(model)
    for line in lines.values():
        line.sort(key=_rank, reverse=True)  # the next model is last: pop is cheap there
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


def _rank(model: Waiting) -> tuple[int, datetime, str]:
    return (-model.priority, model.created, model.uid)


def admit(
    loading: Sequence[str], waiting: Iterable[Waiting], limits: Limits
) -> tuple[list[Waiting], list[Waiting]]:
    """Return the models that may load now, and the models that must wait, both in queue order."""
    ordered = order(loading, waiting)
    # Both counts only grow along the order, so all models that may load come before all others.
    count = sum(
        _is_below(len(loading) + at, limits.cluster) and _is_below(before, limits.namespace)
        for at, (_, before) in enumerate(ordered)
    )
    models = [model for model, _ in ordered]
    return models[:count], models[count:]


def _is_below(count: int, limit: int | None) -> bool:
    return limit is None or count < limit


def shown_position(position: int) -> int:
    """Round a position up to one of a few numbers, so that a long wait costs few status writes."""
    return next((step for step in STEPS if position <= step), position)


def describe_position(shown: int) -> str:
    """Return a position in words."""
    if shown <= 3:
        return f"position {shown} in the queue"
    return f"among the next {shown} in the queue"
