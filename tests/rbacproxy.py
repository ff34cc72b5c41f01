"""A reverse proxy that does as RBAC does, for an API server that does not: it knows some rules.

What they do not allow it refuses and notes; what they allow and nobody asks for it can tell.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import aiohttp
import yaml
from aiohttp import web

from sd_api import names

_CHART = Path(__file__).parent.parent / "charts" / "sd-operator" / "files"
RULES: list[dict[str, list[str]]] = [
    rule
    for name in ("rules.yaml", "leader-rules.yaml")
    for rule in yaml.safe_load((_CHART / name).read_text())
]
"""All that the operator may do: what the chart's Roles say."""

_OBJECT_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_LIST_VERBS = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}
_HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding", "authorization"}


@dataclass(frozen=True, order=True)
class Right:
    """To do one thing with one kind."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


BLOCK_OWNER = Right(names.GROUP, f"{names.PLURAL}/finalizers", "update")
"""What the admission plugin OwnerReferencesPermissionEnforcement asks for."""


def rights(rules: Iterable[Mapping[str, Iterable[str]]]) -> frozenset[Right]:
    """The rights that rules give."""
    return frozenset(
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def asked(method: str, target: str) -> tuple[Right, str] | None:
    """The right that a request needs, and its namespace; None where everybody may ask."""
    parts = urlsplit(target)
    words = parts.path.strip("/").split("/")
    depth = {"api": 2, "apis": 3}.get(words[0], 0)
    if not depth or len(words) <= depth:
        return None  # discovery, version, health
    group, rest, namespace = (words[1] if depth == 3 else ""), words[depth:], ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    watches = parse_qs(parts.query).get("watch", ["0"])[0] in ("1", "true")
    verb = "watch" if watches else (_OBJECT_VERBS if len(rest) > 1 else _LIST_VERBS)[method]
    return Right(group, resource, verb), namespace


@dataclass
class RbacProxy:
    """Stands before an API server while its context lasts.

    hold_pods: what happens to Pods comes late from now on, as it may on a real cluster.
    """

    server: str
    token: str
    ca: str
    kubeconfig: Path
    allowed: frozenset[Right] = field(default_factory=lambda: rights(RULES))
    used: set[Right] = field(default_factory=set)
    missing: set[Right] = field(default_factory=set)
    everywhere: set[Right] = field(default_factory=set)
    """Rights that were needed in all namespaces at once."""
    hold_pods: bool = False

    @property
    def unused(self) -> set[Right]:
        """What is allowed in vain."""
        return set(self.allowed - self.used)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        config = {
            "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "proxy", "user": {"token": "proxy"}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        context = ssl.create_default_context(cadata=self.ca)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.25)  # TLS connections take their time to close, as aiohttp says

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        found = asked(request.method, request.path_qs)
        if found is not None:
            right, namespace = found
            if not namespace:
                self.everywhere.add(right)
            needed = [right, *([BLOCK_OWNER] if _blocks_its_owner(right, body) else [])]
            for one in needed:
                if one not in self.allowed:
                    self.missing.add(one)
                    return _forbidden(one, namespace)
            self.used.update(needed)
        return await self._forward(request, body, found[0] if found else None)

    async def _forward(
        self, request: web.Request, body: bytes, right: Right | None
    ) -> web.StreamResponse:
        kept = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        kept["Authorization"] = f"Bearer {self.token}"
        late = right == Right("", "pods", "watch")
        async with self._session.request(
            request.method,
            self.server + request.path_qs,
            data=body or None,
            headers=kept,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for key, value in answer.headers.items():
                if key.lower() not in _HOP_BY_HOP:
                    response.headers[key] = value
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                while late and self.hold_pods:  # noqa: ASYNC110 - another thread ends it
                    await asyncio.sleep(0.05)
                await response.write(chunk)
            await response.write_eof()
        return response


def _blocks_its_owner(right: Right, body: bytes) -> bool:
    if right != Right("batch", "jobs", "create"):
        return False
    owners: list[dict[str, Any]] = json.loads(body)["metadata"].get("ownerReferences", [])
    return any(owner.get("blockOwnerDeletion") for owner in owners)


def _forbidden(right: Right, namespace: str) -> web.Response:
    what = f'resource "{right.resource}" in API group "{right.group}"'
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": f'User "operator" cannot {right.verb} {what} {where}',
        "reason": "Forbidden",
        "code": 403,
    }
    return web.json_response(status, status=403)
