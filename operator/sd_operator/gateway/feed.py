"""Changes of a namespace's models as they happen: one watch upstream, however many listen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from sd_operator.base.errors import ApiError
from sd_operator.clients.kube import MODELS, Api, Json

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Change:
    """A model as it is now; gone: it is not there any more, and this was its last state."""

    body: Json
    gone: bool = False


class _Listener:
    """What one listener has not yet been told: of each model only the newest."""

    def __init__(self) -> None:
        self._pending: dict[str, Change] = {}
        self._news = asyncio.Event()

    def tell(self, change: Change) -> None:
        self._pending[change.body["metadata"]["uid"]] = change
        self._news.set()

    async def take(self) -> list[Change]:
        await self._news.wait()
        self._news.clear()
        changes, self._pending = list(self._pending.values()), {}
        return changes


class Feed:
    """The models of one namespace, kept current while anyone listens."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._bodies: dict[str, Json] = {}
        self._listeners: set[_Listener] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def heard(self) -> bool:
        """Whether anyone listens."""
        return bool(self._listeners)

    async def listen(self) -> AsyncGenerator[Change, None]:
        """Yield the models that are there, then every change, until the listener leaves."""
        listener = _Listener()
        for body in self._bodies.values():
            listener.tell(Change(body))
        self._listeners.add(listener)
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name=f"watch {self._namespace}")
        try:
            while True:
                for change in await listener.take():
                    yield change
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                await self.close()

    async def close(self) -> None:
        """End the watch, and know nothing any more."""
        task, self._task = self._task, None
        self._bodies = {}
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                listing = await self._api.list(MODELS, self._namespace)
                self._replace({body["metadata"]["uid"]: body for body in listing.items})
                async with contextlib.aclosing(
                    self._api.watch(MODELS, self._namespace, listing.version)
                ) as events:
                    async for kind, body in events:
                        self._take(kind, body)
            except ApiError as error:
                log.info("the watch of %s begins again: %s", self._namespace, error)
                await asyncio.sleep(RETRY_SECONDS)

    def _replace(self, bodies: dict[str, Json]) -> None:
        former, self._bodies = self._bodies, bodies
        for uid, body in former.items():
            if uid not in bodies:
                self._tell(Change(body, gone=True))
        for uid, body in bodies.items():
            if former.get(uid) != body:
                self._tell(Change(body))

    def _take(self, kind: str, body: Json) -> None:
        uid = body["metadata"]["uid"]
        if kind == "DELETED":
            self._bodies.pop(uid, None)
            self._tell(Change(body, gone=True))
        elif kind in {"ADDED", "MODIFIED"}:
            self._bodies[uid] = body
            self._tell(Change(body))

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener.tell(change)
