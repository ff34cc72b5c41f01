"""Server-sent events that update all open pages of a browser.

A message has the name of a part of a page, and the part's new HTML. A message without HTML asks
pages with this part to request their content again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

from fastapi.sse import format_sse_event

from sd_operator.clients.kube import Json
from sd_operator.gateway.feed import Change
from sd_operator.gateway.gallery import views
from sd_operator.gateway.gallery.pages import render
from sd_operator.resources.model import Model

HEARTBEAT_SECONDS = 15.0
REFRESH_SECONDS = 1.0
"""How long a stream collects changes before it asks pages to request their content again."""
RECONNECT_SECONDS = 2

LISTING, NEWS, PING, ENDED = "listing", "news", "ping", "ended"

Message = tuple[str, str]
"""The name of a part of a page, and its new HTML."""


def digest(bodies: Iterable[Json]) -> str:
    """Return a digest of the models that a page shows.

    A page sends its digest when it requests its content again. It gets a 204 if nothing changed.
    """
    versions = sorted(
        f"{body['metadata']['uid']}={body['metadata']['resourceVersion']}" for body in bodies
    )
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]


class Updates:
    """Translates changes of a namespace's models into messages for the pages that show them."""

    def __init__(self, bodies: Iterable[Json]) -> None:
        self.stale: dict[str, None] = {}
        """The names of the parts that pages must request again, in the order of the changes."""
        bodies = list(bodies)
        self._versions = {_uid(body): _version(body) for body in bodies}
        self._cards = {_uid(body): _card(body) for body in bodies}

    def messages(self, change: Change) -> Iterator[Message]:
        """Yield the messages for a change, and extend `stale`; yield none for a known version."""
        uid, name = _uid(change.body), change.body["metadata"]["name"]
        if change.gone:
            self._versions.pop(uid, None)
            if self._cards.pop(uid, None) is not None:
                self.stale[LISTING] = None
                yield f"gone-{name}", render("_gone.html", name=name)
                yield f"news-{name}", render("_news.html", text=f"{name} was deleted")
            return
        if self._versions.get(uid) == _version(change.body):
            return
        before, after = self._cards.get(uid), _card(change.body)
        self._versions[uid], self._cards[uid] = _version(change.body), after
        if before is None or _shape(before) != _shape(after):
            self.stale[LISTING] = None
        # Within one stage of a load, the state that is sent below suffices. After any other change
        # the page requests all of its content again, because more may have changed.
        if before is None or _stage(before) is None or _stage(before) != _stage(after):
            self.stale[f"changed-{name}"] = None
        if before is not None and before != after:
            yield f"state-{name}", render("_state.html", card=after)
        if text := views.news(before, after):
            news = render("_news.html", text=text)
            yield NEWS, news
            yield f"news-{name}", news


def _card(body: Json) -> views.Card:
    return views.card(Model.from_body(body))


def _stage(card: views.Card) -> str | None:
    return card.bar.stage if card.bar is not None else None


def _shape(card: views.Card) -> tuple[object, ...]:
    """Return the values of a card that filters match, or that it shows outside its state."""
    return card.phase, card.type, card.base, card.size


async def stream(
    updates: Updates, changes: AsyncGenerator[Change, None], alive: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events until the caller closes the generator or the session has ended.

    If there are no changes, it yields heartbeats: they keep proxies from closing the connection,
    and show the browser that the server is there. alive: whether the session is still valid.
    """
    clock = asyncio.get_running_loop().time
    refresh_at: float | None = None
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
                    for name, html in updates.messages(change):
                        yield _event(name=name, html=html)
                    if updates.stale and refresh_at is None:
                        # Changes often come together: wait, so that the page refreshes once.
                        refresh_at = clock() + REFRESH_SECONDS
                elif refresh_at is None:
                    yield _event(name=PING)
                if refresh_at is not None and clock() >= refresh_at:
                    for name in updates.stale:
                        yield _event(name=name)
                    refresh_at, updates.stale = None, {}
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    yield _event(name=ENDED)


def _event(**message: str) -> bytes:
    return format_sse_event(data_str=json.dumps(message))


def _uid(body: Json) -> str:
    return str(body["metadata"]["uid"])


def _version(body: Json) -> str:
    return str(body["metadata"].get("resourceVersion") or "")
