"""A reverse proxy that disturbs one model's life at a request that a test names.

For example:

    async def never_sent(exchange: Exchange) -> web.Response:
        return exchange.drop()

    fault = Fault("never sent", never_sent, again=True)
    proxy.attacks["sketch"] = [Attack(Point("create jobs", jobs=0, nth=1), fault)]
    cluster.model("sketch")
    ...
    assert not proxy.attacks["sketch"]  # the request came, and was disturbed

A Point identifies a request: its verb and resource, how many Jobs the model had by then, and how
often the request was made since. A run without faults records all requests in `asked`; later runs
disturb each of them. Watches belong to the operator and not to a model, so a fault of a watch
affects all models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from aiohttp import web
from typing_extensions import override

from sd_api import names
from tests.support.kube.rights import Right, needed
from tests.support.proxies.apiproxy import ApiProxy, answer_head, failure

BLIND_SECONDS = 1.5

_OF_JOB = re.compile(r"(?P<model>.+)-[0-9a-f]{10}(-[a-z0-9]{5})?")


@dataclass(frozen=True)
class Point:
    """A request of a model: the nth `what` (from 1) since the model had this many Jobs."""

    what: str
    jobs: int
    nth: int

    def __str__(self) -> str:
        return f"{self.what} #{self.nth} of Job {self.jobs}"


@dataclass
class Exchange:
    """A request that a fault handles."""

    proxy: FaultProxy
    request: web.Request
    body: bytes

    async def forward(self) -> web.Response:
        """Forward the request; return the whole response."""
        async with self.proxy.ask(self.request, self.body) as answer:
            head = answer_head(answer)
            return web.Response(
                status=head.status, headers=head.headers, body=await answer.content.read()
            )

    def drop(self) -> web.Response:
        """Cut the connection without a response."""
        if self.request.transport is not None:
            self.request.transport.abort()
        return web.Response()


Play = Callable[[Exchange], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Fault:
    """One way to disturb a request."""

    name: str
    play: Play
    """The function that handles the request instead of the proxy."""
    times: int = 1
    """How many requests in a row it disturbs."""
    on: Callable[[str], bool] = lambda _: True
    """The requests that can be disturbed, by verb and resource."""
    again: bool = False
    """Whether the operator has to make the request again."""
    deaf: bool = False
    """Whether the operator ends, or does not learn that its write succeeded.

    It may then lose Events and the webhook call for a deleted model, which are not retried.
    """


@dataclass(frozen=True)
class Attack:
    """A fault at one request of a life."""

    point: Point
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault.name}: {self.point}"

    @property
    def deaf(self) -> bool:
        """Whether Events may be lost: the operator gives up after three requests for an Event."""
        return self.fault.deaf or (self.point.what == "create events" and self.fault.times > 2)


@dataclass
class FaultProxy(ApiProxy):
    """Forwards requests and disturbs those that have an attack."""

    kill: Callable[[], None] = lambda: None
    """Kills the operator with SIGKILL."""
    attacks: dict[str, list[Attack]] = field(default_factory=dict)
    """The attacks still to be made, by model."""
    asked: defaultdict[str, list[Point]] = field(default_factory=lambda: defaultdict(list))
    """The requests about each model in order, without repetitions."""
    models: dict[str, str] = field(default_factory=dict)
    """The names of models, by uid."""
    versions: dict[str, str] = field(default_factory=dict)
    """The resourceVersion at which each model was created."""

    def __post_init__(self) -> None:
        self._played: Counter[tuple[str, Attack]] = Counter()
        self._jobs: defaultdict[str, set[str]] = defaultdict(set)
        self._watches: set[asyncio.Future[bytes | None]] = set()
        self._first_lists: dict[str, bytes] = {}
        self._old_lists: set[str] = set()
        self._blind_until = 0.0
        self._away = False
        self._forbidden: Callable[[Right], bool] = lambda _: False

    def leave(self) -> None:
        """Cut every connection from now on."""
        self._away = True
        self._loop.call_soon_threadsafe(self.cut, None)

    def come_back(self) -> None:
        """Answer again."""
        self._away = False

    def forbid(self, forbidden: Callable[[Right], bool]) -> None:
        """Forbid some rights, or allow them again; all watches expire."""
        self._forbidden = forbidden
        self._loop.call_soon_threadsafe(self.expire)

    @override
    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Forward a request, or disturb it."""
        exchange = Exchange(self, request, body)
        if self._away:
            return exchange.drop()
        found = needed(request.method, request.path_qs)
        if found is None:
            return await self.forward(request, body)
        right, _ = found
        if self._forbidden(right):
            return failure(403, "Forbidden", f'User "operator" cannot {right}')
        if right.verb == "watch":
            return await self._watch(exchange)
        model = self._model(right, request, body)
        if model is None:
            if right.verb == "list":
                return await self._list(exchange)
            return await self.forward(request, body)
        if (right.verb, right.resource) == ("create", "jobs"):
            self._jobs[model].add(json.loads(body)["metadata"]["name"])
        play = self._attack(model, f"{right.verb} {right.resource}")
        if play is not None:
            return await play(exchange)
        return await self.forward(request, body)

    def _attack(self, model: str, what: str) -> Play | None:
        """Record a request; return the fault that is due."""
        jobs = len(self._jobs[model])
        nth = sum((one.what, one.jobs) == (what, jobs) for one in self.asked[model]) + 1
        point = Point(what, jobs, nth)
        left = self.attacks.get(model, [])
        attack = next((one for one in left if one.point == point), None)
        if attack is None:
            self.asked[model].append(point)
            return None
        played = self._played[model, attack] = self._played[model, attack] + 1
        if played == attack.fault.times:
            left.remove(attack)
        if not attack.fault.again:
            self.asked[model].append(point)
        return attack.fault.play

    def _model(self, right: Right, request: web.Request, body: bytes) -> str | None:
        """Return the model that a request is about; None if it is about no single model."""
        words = request.path.strip("/").split("/")
        if right.verb == "create":
            made: dict[str, Any] = json.loads(body)
            if right.resource == "events":
                return str(made["involvedObject"]["name"])
            owner = made["metadata"].get("annotations", {}).get(names.ANNOTATION_MODEL, "")
            return owner.rpartition("/")[2] or None
        if right.verb == "list":
            selector = parse_qs(urlsplit(request.path_qs).query).get("labelSelector", [""])[0]
            return self.models.get(selector.rpartition(f"{names.LABEL_MODEL_UID}=")[2])
        if right.resource.startswith(names.PLURAL):
            return words[6]
        found = _OF_JOB.fullmatch(words[words.index(right.resource.partition("/")[0]) + 1])
        return found["model"] if found else None

    # Watches, and the lists before them.

    def cut(self, line: bytes | None) -> None:
        """End all watches after these bytes; None cuts their connections."""
        for watch in self._watches:
            if not watch.done():
                watch.set_result(line)

    def expire(self) -> None:
        """End all watches with 410, so that clients list again."""
        self.cut(error_event(410, "Expired"))

    def blind(self) -> None:
        """Let all watches expire and delay new ones by BLIND_SECONDS, so deletions go unseen."""
        self._blind_until = asyncio.get_running_loop().time() + BLIND_SECONDS
        self.expire()

    def age(self) -> None:
        """Let all watches expire; answer the next lists with those of the operator's start."""
        self._old_lists = set(self._first_lists)
        self.expire()

    async def _until_seen(self) -> None:
        await asyncio.sleep(max(0.0, self._blind_until - asyncio.get_running_loop().time()))

    async def _list(self, exchange: Exchange) -> web.Response:
        await self._until_seen()
        key = exchange.request.path
        if key in self._old_lists:
            self._old_lists.discard(key)
            return web.Response(body=self._first_lists[key], content_type="application/json")
        response = await exchange.forward()
        if response.status == 200 and isinstance(response.body, bytes):
            self._first_lists.setdefault(key, response.body)
        return response

    async def _watch(self, exchange: Exchange) -> web.StreamResponse:
        await self._until_seen()
        cut: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._watches.add(cut)
        try:
            async with self.ask(exchange.request, exchange.body) as answer:
                response = answer_head(answer)
                with contextlib.suppress(ConnectionResetError):  # the client left
                    await response.prepare(exchange.request)
                    await _copy_lines(answer, response, cut)
                    last = cut.result() if cut.done() else b""
                    if last:
                        await response.write(last)
                    if last is None or (last and not last.endswith(b"\n")):
                        exchange.drop()
                    else:
                        await response.write_eof()
        finally:
            self._watches.discard(cut)
        return response


async def _copy_lines(
    answer: aiohttp.ClientResponse, response: web.StreamResponse, cut: asyncio.Future[bytes | None]
) -> None:
    """Pass whole events on until the watch ends or is cut."""
    rest = b""
    while not cut.done():
        chunk = asyncio.ensure_future(answer.content.readany())
        try:
            await asyncio.wait({chunk, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not chunk.done():
                chunk.cancel()
        if not chunk.done() or chunk.cancelled():
            return
        data = chunk.result()
        if not data:
            return
        lines, newline, rest = (rest + data).rpartition(b"\n")
        await response.write(lines + newline)


def error_event(code: int, reason: str) -> bytes:
    """Return the last event of a watch that the API server ends with an error."""
    status = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": "no"}
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"
