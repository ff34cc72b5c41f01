"""Server-sent events that update an open page: new parts of it, or a request to fetch it again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Protocol

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from sd_operator.clients.kube import Json
from sd_operator.gateway.feed import Change
from sd_operator.gateway.gallery import views
from sd_operator.gateway.gallery.pages import render

HEARTBEAT_SECONDS = 15.0
REFRESH_SECONDS = 1.0
"""How long a stream collects changes before it asks the page to fetch itself again."""
RECONNECT_SECONDS = 2

CHANGED, LISTING, NEWS, ENDED = "changed", "listing", "news", "ended"

Event = tuple[str, str]
"""The name and the data of an event. Browsers ignore an event without data."""


def digest(bodies: Iterable[Json]) -> str:
    """Return a digest of the models that a page shows.

    The page sends it when it opens a stream, which then knows whether the page missed a change.
    """
    versions = sorted(
        f"{body['metadata']['uid']}={body['metadata']['resourceVersion']}" for body in bodies
    )
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]


class Updates(Protocol):
    """Translates changes of models into events for one page."""

    stale: bool
    """Whether the page must fetch itself again, because events cannot update it."""
    refresh: str
    """The name of the event that makes the page fetch itself again."""

    def events(self, change: Change) -> Iterator[Event]:
        """Yield the events that bring the page up to date with a change, and set `stale`."""


class ListUpdates:
    """Updates of the list: new cards, and announcements for screen readers."""

    refresh = LISTING

    def __init__(self, bodies: Iterable[Json]) -> None:
        self.stale = False
        self._versions = {_uid(body): _version(body) for body in bodies}
        self._cards = {_uid(body): views.card(body) for body in bodies}

    def events(self, change: Change) -> Iterator[Event]:
        """Yield the events for a change; none if the page already shows this version."""
        uid = _uid(change.body)
        if change.gone:
            self._versions.pop(uid, None)
            self.stale |= self._cards.pop(uid, None) is not None
            return
        if self._versions.get(uid) == _version(change.body):
            return
        before, after = self._cards.get(uid), views.card(change.body)
        self._versions[uid], self._cards[uid] = _version(change.body), after
        # A new phase or type can change whether the page's filter matches the model.
        self.stale |= before is None or (before.phase, before.type) != (after.phase, after.type)
        if before is not None and before != after:
            yield f"card-{after.name}", render("_card.html", card=after)
        if text := views.news(before, after):
            yield NEWS, render("_news.html", text=text)


class ModelUpdates:
    """Updates of one model's page: its state, and announcements for screen readers."""

    refresh = CHANGED

    def __init__(self, body: Json) -> None:
        self.stale = False
        self._name = body["metadata"]["name"]
        self._version = _version(body)
        self._card: views.Card | None = views.card(body)

    def events(self, change: Change) -> Iterator[Event]:
        """Yield the events for a change; none if the page shows this version or another model."""
        if change.body["metadata"]["name"] != self._name:
            return
        if change.gone:
            self._card = None
            yield "state", render("_gone.html", name=self._name)
            yield NEWS, render("_news.html", text=f"{self._name} was deleted")
            return
        if self._version == _version(change.body):
            return
        self._version = _version(change.body)
        before, after = self._card, views.card(change.body)
        self._card = after
        if before is None or before.bar is None or after.bar is None:
            self.stale = True
        else:
            yield "state", render("_state.html", card=after)
        if text := views.news(before, after):
            yield NEWS, render("_news.html", text=text)


async def stream(
    updates: Updates, changes: AsyncGenerator[Change, None], alive: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events until the caller closes this or the session is no longer alive.

    Without changes it yields heartbeats: they keep proxies from closing the connection.
    """
    clock = asyncio.get_running_loop().time
    refresh_at = clock() if updates.stale else None
    yield format_sse_event(comment="live", retry=RECONNECT_SECONDS * 1000)
    async with contextlib.aclosing(changes):
        waiting = asyncio.ensure_future(anext(changes))
        try:
            while alive():
                pause = HEARTBEAT_SECONDS
                if refresh_at is not None:
                    pause = max(0.0, refresh_at - clock())
                await asyncio.wait({waiting}, timeout=pause)
                if waiting.done():
                    change = waiting.result()
                    waiting = asyncio.ensure_future(anext(changes))
                    for name, data in updates.events(change):
                        yield format_sse_event(event=name, data_str=data)
                    if updates.stale and refresh_at is None:
                        # Changes often come together: wait, so that the page refreshes once.
                        refresh_at = clock() + REFRESH_SECONDS
                elif refresh_at is None:
                    yield KEEPALIVE_COMMENT
                if refresh_at is not None and clock() >= refresh_at:
                    refresh_at, updates.stale = None, False
                    yield format_sse_event(event=updates.refresh, data_str="new")
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    yield format_sse_event(event=ENDED, data_str="signed out")


def _uid(body: Json) -> str:
    return str(body["metadata"]["uid"])


def _version(body: Json) -> str:
    return str(body["metadata"].get("resourceVersion") or "")
