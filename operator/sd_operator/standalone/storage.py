"""Objects in memory, in order: every write has a revision, and a bounded history to watch."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sd_operator.standalone.errors import Json, expired

ResourceId = tuple[str, str]
Key = tuple[str, str]
"""Namespace ("" where there is none) and name."""

HISTORY = 4096
"""Changes kept per resource: a watch that falls behind further is told to list again."""


@dataclass(frozen=True)
class Change:
    """One write: the object before and after; None where there is none."""

    revision: int
    old: Json | None
    new: Json | None


class Storage:
    """All objects. What is stored is never changed in place, so readers need no copy."""

    def __init__(self) -> None:
        # A later life of the server starts above all revisions of an earlier one, so that a
        # client which goes on watching is told to list again.
        self.revision = self._first = int(time.time())
        self._tries_only = False
        self._objects: dict[ResourceId, dict[Key, Json]] = defaultdict(dict)
        self._history: dict[ResourceId, deque[Change]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._changed: dict[ResourceId, asyncio.Event] = defaultdict(asyncio.Event)

    def copy(self) -> Storage:
        """A storage of the same objects to try writes on: those have no revision."""
        made = Storage()
        made.revision, made._tries_only = self.revision, True
        for resource, objects in self._objects.items():
            made._objects[resource] = dict(objects)
        return made

    def get(self, resource: ResourceId, key: Key) -> Json | None:
        """One object."""
        return self._objects[resource].get(key)

    def list(self, resource: ResourceId, namespace: str = "") -> list[Json]:
        """All objects of a namespace, or of all namespaces, by namespace and name."""
        objects = self._objects[resource]
        return [objects[key] for key in sorted(objects) if namespace in ("", key[0])]

    def put(self, resource: ResourceId, key: Key, new: Json) -> Json:
        """Store an object under a new revision."""
        old = self.get(resource, key)
        stamped = self._stamp(new)
        self._objects[resource][key] = stamped
        self._record(resource, Change(self.revision, old, stamped))
        return stamped

    def remove(self, resource: ResourceId, key: Key) -> Json:
        """Remove an object; it, under the revision of its removal."""
        stamped = self._stamp(self._objects[resource].pop(key))
        self._record(resource, Change(self.revision, stamped, None))
        return stamped

    def _stamp(self, item: Json) -> Json:
        if self._tries_only:
            return item
        self.revision += 1
        return item | {"metadata": item["metadata"] | {"resourceVersion": str(self.revision)}}

    def _record(self, resource: ResourceId, change: Change) -> None:
        self._history[resource].append(change)
        self._changed.pop(resource, asyncio.Event()).set()

    def oldest(self, resource: ResourceId) -> int:
        """The oldest revision after which every change of the resource is still known."""
        history = self._history[resource]
        return history[0].revision - 1 if len(history) == HISTORY else self._first

    async def changes(self, resource: ResourceId, since: int) -> AsyncIterator[Change]:
        """Every change after a revision, for ever; 410 once some are no longer known."""
        while True:
            if since < self.oldest(resource):
                raise expired(f"too old resource version: {since} ({self.oldest(resource)})")
            news: list[Change] = []
            for change in reversed(self._history[resource]):
                if change.revision <= since:
                    break
                news.append(change)
            for change in reversed(news):
                since = change.revision
                yield change
            if not news:
                await self._changed[resource].wait()
