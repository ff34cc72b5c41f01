"""Passes changes of a namespace's models to listeners, which all share one watch."""

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
    """A model was added, changed or deleted."""

    body: Json
    """The model as it is now, or its last state if it is gone."""
    gone: bool = False
    """Whether the model was deleted."""


class _Listener:
    """The changes that one listener has not received yet: only the newest of each model."""

    def __init__(self) -> None:
        self._pending: dict[str, Change] = {}
        self._changed = asyncio.Event()

    def add(self, change: Change) -> None:
        self._pending[change.body["metadata"]["uid"]] = change
        self._changed.set()

    async def take(self) -> list[Change]:
        await self._changed.wait()
        self._changed.clear()
        changes, self._pending = list(self._pending.values()), {}
        return changes


class Feed:
    """The models of one namespace, kept up to date while it has listeners."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._bodies: dict[str, Json] = {}
        self._listeners: set[_Listener] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def has_listeners(self) -> bool:
        """Whether any `listen` is running."""
        return bool(self._listeners)

    async def listen(self) -> AsyncGenerator[Change, None]:
        """Yield every existing model, then the changes, until the caller closes the generator.

        If a model changes several times before the caller asks for the next change, the caller gets
        only the newest one.
        """
        listener = _Listener()
        for body in self._bodies.values():
            listener.add(Change(body))
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
        """Stop the watch and forget all models."""
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
                        self._apply(kind, body)
            except ApiError as error:
                log.info("restarting the watch of namespace %s: %s", self._namespace, error)
                await asyncio.sleep(RETRY_SECONDS)

    def _replace(self, bodies: dict[str, Json]) -> None:
        previous, self._bodies = self._bodies, bodies
        for uid, body in previous.items():
            if uid not in bodies:
                self._publish(Change(body, gone=True))
        for uid, body in bodies.items():
            if previous.get(uid) != body:
                self._publish(Change(body))

    def _apply(self, kind: str, body: Json) -> None:
        uid = body["metadata"]["uid"]
        if kind == "DELETED":
            self._bodies.pop(uid, None)
            self._publish(Change(body, gone=True))
        elif kind in {"ADDED", "MODIFIED"}:
            self._bodies[uid] = body
            self._publish(Change(body))

    def _publish(self, change: Change) -> None:
        for listener in self._listeners:
            listener.add(change)
