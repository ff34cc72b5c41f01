"""Stores objects in memory. Every write has a revision; a bounded history serves watches."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sd_operator.standalone.errors import Json, expired

ResourceId = tuple[str, str]
Key = tuple[str, str]
"""Namespace ("" for a cluster-scoped object) and name."""

HISTORY = 4096
"""How many changes of each resource are kept. A watch that falls further behind must list again."""


@dataclass(frozen=True)
class Change:
    """One write."""

    revision: int
    old: Json | None
    """The object before; None if it was created."""
    new: Json | None
    """The object afterwards; None if it was removed."""


class Storage:
    """All objects. A stored object is never changed in place, so readers need no copy."""

    def __init__(self) -> None:
        # Revisions start at the time, so that they are above those of an earlier run. A client
        # that still watches with an old revision then has to list again.
        self.revision = self._first = int(time.time())
        self._dry_run = False
        self._objects: dict[ResourceId, dict[Key, Json]] = defaultdict(dict)
        self._history: dict[ResourceId, deque[Change]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._changed: dict[ResourceId, asyncio.Event] = defaultdict(asyncio.Event)

    def copy(self) -> Storage:
        """Return a storage with the same objects for dry runs; writes to it get no revision."""
        storage = Storage()
        storage.revision, storage._dry_run = self.revision, True
        for resource, objects in self._objects.items():
            storage._objects[resource] = dict(objects)
        return storage

    def get(self, resource: ResourceId, key: Key) -> Json | None:
        """Return one object, or None."""
        return self._objects[resource].get(key)

    def list(self, resource: ResourceId, namespace: str = "") -> list[Json]:
        """Return the objects of a namespace ("": of all), sorted by namespace and name."""
        objects = self._objects[resource]
        return [objects[key] for key in sorted(objects) if namespace in ("", key[0])]

    def put(self, resource: ResourceId, key: Key, new: Json) -> Json:
        """Store an object; return it with its new resourceVersion."""
        old = self.get(resource, key)
        stamped = self._stamp(new)
        self._objects[resource][key] = stamped
        self._record(resource, Change(self.revision, old, stamped))
        return stamped

    def remove(self, resource: ResourceId, key: Key) -> Json:
        """Remove an object; return it with the resourceVersion of its removal."""
        stamped = self._stamp(self._objects[resource].pop(key))
        self._record(resource, Change(self.revision, stamped, None))
        return stamped

    def _stamp(self, item: Json) -> Json:
        if self._dry_run:
            return item
        self.revision += 1
        return item | {"metadata": item["metadata"] | {"resourceVersion": str(self.revision)}}

    def _record(self, resource: ResourceId, change: Change) -> None:
        self._history[resource].append(change)
        self._changed.pop(resource, asyncio.Event()).set()

    def oldest(self, resource: ResourceId) -> int:
        """Return the oldest revision from which the resource can still be watched."""
        history = self._history[resource]
        return history[0].revision - 1 if len(history) == HISTORY else self._first

    async def changes(self, resource: ResourceId, since: int) -> AsyncIterator[Change]:
        """Yield every change after a revision, for ever; raise 410 if some are no longer known."""
        while True:
            if since < self.oldest(resource):
                raise expired(f"too old resource version: {since} ({self.oldest(resource)})")
            pending: list[Change] = []
            for change in reversed(self._history[resource]):
                if change.revision <= since:
                    break
                pending.append(change)
            for change in reversed(pending):
                since = change.revision
                yield change
            if not pending:
                await self._changed[resource].wait()
