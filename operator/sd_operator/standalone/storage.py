"""All objects, in memory and in a database. Each write has a revision; a history serves watches."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from sd_operator.standalone.database import Database, Key, ResourceId
from sd_operator.standalone.errors import Json, expired

TRANSIENT = {("events", "")}
"""The resources that are not written to the database, so their objects end with the run."""
RESERVED = 1000
"""How many revisions are reserved with one write to the database."""
HISTORY = 4096
"""How many changes of each resource are kept. A watch that has missed more must list again."""


@dataclass(frozen=True)
class Change:
    """One write."""

    revision: int
    old: Json | None
    """The object before; None if it was created."""
    new: Json | None
    """The object afterwards; None if it was removed."""


class Storage:
    """All objects. A stored object is never changed in place, so readers need no copy.

    A write goes to the database first: if that fails, nothing has changed.
    """

    def __init__(self, database: Database | None = None) -> None:
        self._database = database
        self._dry_run = False
        self._objects: dict[ResourceId, dict[Key, Json]] = defaultdict(dict)
        self._applied: dict[str, dict[str, Json]] = defaultdict(dict)
        if database:
            for resource, key, item in database.objects():
                self._objects[resource][key] = item
            for uid, manager, manifest in database.applied():
                self._applied[uid][manager] = manifest
        # Revisions start above those of earlier runs, also above those of a run whose database is
        # gone. A client that still uses an old revision then has to list again.
        self.revision = int(time.time())
        if database:
            self.revision = max(self.revision, database.reserved + 1)
        self.first = self.revision
        """The first revision of this run."""
        self._reserved = 0
        self._reserve()
        self._history: dict[ResourceId, deque[Change]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._changed: dict[ResourceId, asyncio.Event] = defaultdict(asyncio.Event)

    def copy(self) -> Storage:
        """Return a storage with the same objects for dry runs.

        Writes to the copy get no revision, and do not change this storage or the database.
        """
        storage = Storage()
        storage.revision, storage._dry_run = self.revision, True
        for resource, objects in self._objects.items():
            storage._objects[resource] = dict(objects)
        for uid, manifests in self._applied.items():
            storage._applied[uid] = dict(manifests)
        return storage

    def get(self, resource: ResourceId, key: Key) -> Json | None:
        """Return one object; None if it does not exist."""
        return self._objects[resource].get(key)

    def list(self, resource: ResourceId, namespace: str = "") -> list[Json]:
        """Return the objects of a namespace ("": of all), sorted by namespace and name."""
        objects = self._objects[resource]
        return [objects[key] for key in sorted(objects) if namespace in ("", key[0])]

    def put(self, resource: ResourceId, key: Key, new: Json) -> Json:
        """Store an object; return it with its new resourceVersion."""
        old = self.get(resource, key)
        stamped = self._stamp(new)
        if self._database and resource not in TRANSIENT:
            self._database.save(resource, key, stamped)
        self._objects[resource][key] = stamped
        self._record(resource, Change(self.revision, old, stamped))
        return stamped

    def remove(self, resource: ResourceId, key: Key) -> Json:
        """Remove an object; return it with the resourceVersion of its removal."""
        stamped = self._stamp(self._objects[resource][key])
        uid = stamped["metadata"]["uid"]
        if self._database:
            self._database.remove(resource, key, uid)
        del self._objects[resource][key]
        self._applied.pop(uid, None)
        self._record(resource, Change(self.revision, stamped, None))
        return stamped

    def convert(self, resource: ResourceId, change: Callable[[Json], Json]) -> None:
        """Replace all objects of a resource, because its definition has changed.

        As on a real API server, clients that watch get no event, and an object keeps its
        resourceVersion. The database gets the new form with the next write.
        """
        for key, item in self._objects[resource].items():
            self._objects[resource][key] = change(item)

    def applied(self, uid: str, manager: str) -> Json | None:
        """Return the last manifest that a field manager applied to an object; None if none was."""
        return self._applied.get(uid, {}).get(manager)

    def set_applied(self, uid: str, manager: str, manifest: Json) -> None:
        """Store the last manifest that a field manager applied to an object."""
        if self._database:
            self._database.save_applied(uid, manager, manifest)
        self._applied[uid][manager] = manifest

    def _stamp(self, item: Json) -> Json:
        if self._dry_run:
            return item
        self._reserve()
        self.revision += 1
        return item | {"metadata": item["metadata"] | {"resourceVersion": str(self.revision)}}

    def _reserve(self) -> None:
        """Reserve further revisions in the database if the next one is not reserved yet."""
        if self._database and self.revision >= self._reserved:
            self._database.reserve(self.revision + RESERVED)
            self._reserved = self.revision + RESERVED

    def _record(self, resource: ResourceId, change: Change) -> None:
        self._history[resource].append(change)
        self._changed.pop(resource, asyncio.Event()).set()

    def oldest(self, resource: ResourceId) -> int:
        """Return the oldest revision from which the resource can still be watched."""
        history = self._history[resource]
        return history[0].revision - 1 if len(history) == HISTORY else self.first

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
