"""Pages that change by themselves: server-sent events with the parts of a page that are new."""

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
LISTING_SECONDS = 1.0
RECONNECT_SECONDS = 2

CHANGED, LISTING, NEWS, ENDED = "changed", "listing", "news", "ended"

Event = tuple[str, str]
"""A name, and what it carries; browsers pass over an event that carries nothing."""


def seen(bodies: Iterable[Json]) -> str:
    """A digest of the models that a page shows, by which a stream knows what the page missed."""
    versions = sorted(
        f"{body['metadata']['uid']}={body['metadata']['resourceVersion']}" for body in bodies
    )
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]


class Teller(Protocol):
    """Turns changes of models into events of one page."""

    stale: bool
    """Whether the page should be asked for anew."""
    refresh: str
    """The event that says so."""

    def tell(self, change: Change) -> Iterator[Event]:
        """What a change means to the page."""


class ListTeller:
    """For the list: a card's new state; that the list itself has changed; what to say aloud."""

    refresh = LISTING

    def __init__(self, bodies: Iterable[Json]) -> None:
        self.stale = False
        self._versions = {_uid(body): _version(body) for body in bodies}
        self._cards = {_uid(body): views.card(body) for body in bodies}

    def tell(self, change: Change) -> Iterator[Event]:
        """Nothing, where the page has this version."""
        uid = _uid(change.body)
        if change.gone:
            self._versions.pop(uid, None)
            self.stale |= self._cards.pop(uid, None) is not None
            return
        if self._versions.get(uid) == _version(change.body):
            return
        before, after = self._cards.get(uid), views.card(change.body)
        self._versions[uid], self._cards[uid] = _version(change.body), after
        # Another phase or type may be filtered out, or in.
        self.stale |= before is None or (before.phase, before.type) != (after.phase, after.type)
        if before is not None and before != after:
            yield f"card-{after.name}", render("_card.html", card=after)
        if said := views.news(before, after):
            yield NEWS, render("_news.html", text=said)


class ModelTeller:
    """For one model's page: its state; that the rest has changed; what to say aloud."""

    refresh = CHANGED

    def __init__(self, body: Json) -> None:
        self.stale = False
        self._name = body["metadata"]["name"]
        self._version = _version(body)
        self._card: views.Card | None = views.card(body)

    def tell(self, change: Change) -> Iterator[Event]:
        """Nothing, where the page has this version, or shows another model."""
        if change.body["metadata"]["name"] != self._name:
            return
        if change.gone:
            self._card = None
            yield "state", render("_gone.html", name=self._name)
            yield NEWS, render("_news.html", text=f"{self._name} is deleted")
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
        if said := views.news(before, after):
            yield NEWS, render("_news.html", text=said)


async def stream(
    teller: Teller, changes: AsyncGenerator[Change, None], alive: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """Events until the listener leaves, or is signed out; heartbeats while nothing happens."""
    clock = asyncio.get_running_loop().time
    refresh_at = clock() if teller.stale else None
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
                    for name, data in teller.tell(change):
                        yield format_sse_event(event=name, data_str=data)
                    if teller.stale and refresh_at is None:
                        # Many changes come together: the page is asked for anew once.
                        refresh_at = clock() + LISTING_SECONDS
                elif refresh_at is None:
                    yield KEEPALIVE_COMMENT
                if refresh_at is not None and clock() >= refresh_at:
                    refresh_at, teller.stale = None, False
                    yield format_sse_event(event=teller.refresh, data_str="new")
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    yield format_sse_event(event=ENDED, data_str="signed out")


def _uid(body: Json) -> str:
    return str(body["metadata"]["uid"])


def _version(body: Json) -> str:
    return str(body["metadata"].get("resourceVersion") or "")
