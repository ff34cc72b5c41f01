"""Watches: the existing objects, then every change, until the client leaves or the time is over."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from aiohttp import web

from sd_operator.standalone import requests
from sd_operator.standalone.errors import ApiError, Cause, Json, invalid
from sd_operator.standalone.resources import Resource
from sd_operator.standalone.storage import Change, Storage

BOOKMARK_SECONDS = 30.0
DEFAULT_SECONDS = (1800, 3600)


async def serve(
    request: web.Request, storage: Storage, resource: Resource, namespace: str
) -> web.StreamResponse:
    """Answer a watch request with one JSON event per line."""
    query = request.query
    initial = query.get("sendInitialEvents") == "true"
    if initial and query.get("resourceVersionMatch") != "NotOlderThan":
        text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        cause = Cause.forbidden("resourceVersionMatch", text)
        raise invalid(("ListOptions", "meta.k8s.io"), "", [cause])
    # The time is random, so that clients do not all reconnect at once.
    seconds = requests.whole(request, "timeoutSeconds") or random.randint(*DEFAULT_SECONDS)  # noqa: S311 - no secret
    watch = Watch(request, storage, resource, namespace)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(seconds), aclosing(watch.events(initial)) as events:
            async for event in events:
                await response.write(json.dumps(event).encode() + b"\n")
    with suppress(ConnectionError):
        await response.write_eof()
    return response


class Watch:
    """One client's watch of one resource."""

    def __init__(
        self, request: web.Request, storage: Storage, resource: Resource, namespace: str
    ) -> None:
        self._request = request
        self._storage = storage
        self._resource = resource
        self._namespace = namespace
        self._matches = requests.predicate(request, resource)
        self._since = requests.whole(request, "resourceVersion")
        self._bookmarks = request.query.get("allowWatchBookmarks") == "true"
        self._first = True

    async def events(self, initial: bool) -> AsyncGenerator[Json, None]:
        """Yield the events of the watch.

        The existing objects come first if the client asks for them or has no resourceVersion.
        """
        if initial or not self._since:
            self._since = self._storage.revision
            for item in self._storage.list(self._resource.id, self._namespace):
                if self._matches(item):
                    yield self._event("ADDED", item)
        if initial and self._bookmarks:
            yield self._bookmark({"k8s.io/initial-events-end": "true"})
        changes = self._storage.changes(self._resource.id, self._since)
        waiting = asyncio.ensure_future(anext(changes))
        try:
            while True:
                if not (await asyncio.wait({waiting}, timeout=BOOKMARK_SECONDS))[0]:
                    if self._bookmarks:
                        yield self._bookmark()
                    continue
                change = waiting.result()
                waiting = asyncio.ensure_future(anext(changes))
                if event := self._visible(change):
                    yield event
        except ApiError as error:
            yield {"type": "ERROR", "object": error.status()}
        finally:
            waiting.cancel()

    def _visible(self, change: Change) -> Json | None:
        """Return the event for a change; None if the client does not see the object.

        If the object no longer matches the client's selectors, the event is DELETED.
        """
        self._since = change.revision
        had, has = self._covers(change.old), self._covers(change.new)
        if has and change.new is not None:
            return self._event("MODIFIED" if had else "ADDED", change.new)
        last = change.new or change.old
        return self._event("DELETED", last) if had and last is not None else None

    def _covers(self, item: Json | None) -> bool:
        if item is None:
            return False
        namespace = item["metadata"].get("namespace", "")
        return self._namespace in ("", namespace) and self._matches(item)

    def _event(self, kind: str, item: Json) -> Json:
        # Only the first event of a watch describes the columns of a table.
        body = requests.shape(self._request, self._resource, item, self._first)
        self._first = False
        return {"type": kind, "object": body}

    def _bookmark(self, annotations: Json | None = None) -> Json:
        meta: Json = {"resourceVersion": str(max(self._since, self._storage.revision))}
        meta |= {"annotations": annotations} if annotations else {}
        head = {"kind": self._resource.kind, "apiVersion": self._resource.api_version}
        return {"type": "BOOKMARK", "object": head | {"metadata": meta}}
