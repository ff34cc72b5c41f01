"""Faults of an API server and of the network in front of it, for requests and watches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from sd_api import names
from sd_operator.clients.kube import REQUEST_TIMEOUT_SECONDS
from tests.support.proxies.apiproxy import failure
from tests.support.proxies.faultproxy import Exchange, Fault, FaultProxy, error_event

LATE_SECONDS = 1.0
SILENT_SECONDS = REQUEST_TIMEOUT_SECONDS + 1

_STATUS = f"{names.PLURAL}/status"


def _refused(code: int, reason: str, times: int, **headers: str) -> Fault:
    async def play(_: Exchange) -> web.Response:
        return failure(code, reason, "the API server says no, as the test wants it", **headers)

    on = {422: lambda what: _STATUS in what, 409: lambda what: what != "create events"}
    return Fault(f"refused with {code}", play, times, on.get(code, lambda _: True), again=True)


def _is_write(what: str) -> bool:
    """Return whether a request changes a model or a Job, which watches report."""
    return not what.startswith(("get ", "list ")) and what != "create events"


def _is_rare_write(what: str) -> bool:
    """Return whether a request writes something other than a status; slow faults use only these."""
    return _is_write(what) and _STATUS not in what


def _watches(
    name: str,
    befall: Callable[[FaultProxy], None],
    on: Callable[[str], bool] = _is_write,
    deaf: bool = False,
) -> Fault:
    """Disturb all watches once a request has its response, before the client reads it."""

    async def play(exchange: Exchange) -> web.Response:
        response = await exchange.forward()
        befall(exchange.proxy)
        return response

    return Fault(f"watches {name}", play, on=on, deaf=deaf)


async def _killed_before(exchange: Exchange) -> web.Response:
    await asyncio.to_thread(exchange.proxy.kill)
    return exchange.drop()


async def _killed_after(exchange: Exchange) -> web.Response:
    await exchange.forward()
    await asyncio.to_thread(exchange.proxy.kill)
    return exchange.drop()


async def _sent_late(exchange: Exchange) -> web.Response:
    await asyncio.sleep(LATE_SECONDS)
    return await exchange.forward()


async def _answered_late(exchange: Exchange) -> web.Response:
    response = await exchange.forward()
    await asyncio.sleep(LATE_SECONDS)
    return response


async def _answered_too_late(exchange: Exchange) -> web.Response:
    response = await exchange.forward()
    await asyncio.sleep(SILENT_SECONDS)
    return response


async def _never_sent(exchange: Exchange) -> web.Response:
    return exchange.drop()


async def _reply_lost(exchange: Exchange) -> web.Response:
    await exchange.forward()
    return exchange.drop()


async def _old_list(exchange: Exchange) -> web.Response:
    """Answer with an empty list, as it was when the model was created."""
    response = await exchange.forward()
    body = json.loads(response.body) if isinstance(response.body, bytes) else {}
    selector = parse_qs(urlsplit(exchange.request.path_qs).query)["labelSelector"][0]
    uid = selector.rpartition("=")[2]
    version = exchange.proxy.versions[exchange.proxy.models[uid]]
    return web.json_response(body | {"items": [], "metadata": {"resourceVersion": version}})


KILLS = [
    Fault("killed before", _killed_before, on=_is_write, again=True, deaf=True),
    Fault("killed after", _killed_after, on=_is_write, deaf=True),
]
REQUEST_FAULTS = [
    Fault("sent late", _sent_late),
    Fault("answered late", _answered_late),
    Fault("never sent", _never_sent, again=True),
    Fault("never sent, for long", _never_sent, times=4, again=True),
    Fault("reply lost", _reply_lost, deaf=True),
    _refused(409, "Conflict", 1),
    _refused(422, "Invalid", 2),
    _refused(429, "TooManyRequests", 1, **{"Retry-After": "1"}),
    _refused(500, "InternalError", 4),
    _refused(503, "ServiceUnavailable", 1),
    Fault("an old list", _old_list, on=lambda what: what.startswith("list ")),
]
SILENCE = [Fault("answered too late", _answered_too_late, on=_is_rare_write)]
WATCH_FAULTS = [
    _watches("end", lambda proxy: proxy.cut(b"")),
    _watches("are cut", lambda proxy: proxy.cut(None)),
    _watches("are cut in a line", lambda proxy: proxy.cut(b'{"type": "MODIFIED", "obj')),
    _watches("expire", FaultProxy.expire),
    _watches("are blind for a while", FaultProxy.blind),
    _watches("begin with old lists", FaultProxy.age),
]
WATCH_FAILURES = [
    # The operator takes some seconds to end, so status patches are left out.
    _watches(
        "fail",
        lambda proxy: proxy.cut(error_event(500, "InternalError")),
        on=_is_rare_write,
        deaf=True,
    )
]
