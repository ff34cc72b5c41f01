"""The API server's HTTP side: who may ask, what is asked, and how answers look."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from aiohttp import web

from sd_operator.standalone import discovery, logs, patch, protobuf, tables
from sd_operator.standalone.errors import (
    ApiError,
    Cause,
    Json,
    Value,
    bad_request,
    conflict,
    invalid,
    page_not_found,
)
from sd_operator.standalone.registry import Registry, Written, now
from sd_operator.standalone.resources import PODS, Resource
from sd_operator.standalone.selectors import Predicate, lookup, selector
from sd_operator.standalone.storage import Key

BODY_LIMIT = 3 * 1024 * 1024
BOOKMARK_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PATCHES = {
    "application/json-patch+json": patch.json_patch,
    "application/merge-patch+json": patch.merge_patch,
    "application/strategic-merge-patch+json": patch.strategic_merge_patch,
}
APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Target:
    """What a path names: a resource, and perhaps a namespace, an object and a part of it."""

    resource: Resource
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> Key:
        """The object's key in the storage."""
        return (self.namespace, self.name)


class ApiServer:
    """Answers requests that carry the token and name this machine as their host."""

    def __init__(self, token: str, log_folder: Path) -> None:
        self.registry = Registry()
        self._token = token
        self._logs = log_folder
        self._applied: dict[tuple[str, str], Json] = {}
        """What each field manager last applied, by uid and manager."""

    def load(self, item: Json) -> None:
        """Create an object that is there from the start."""
        group, _, version = item["apiVersion"].rpartition("/")
        plural = item["kind"].lower() + "s"
        resource = self.registry.resource(group, version, plural)
        if resource is None:
            raise page_not_found()
        self.registry.create(resource, item["metadata"].get("namespace", ""), item, "Strict")

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            self._admit(request)
            return await self._answer(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        except web.HTTPRequestEntityTooLarge:
            text = f"Request entity too large: limit is {BODY_LIMIT}"
            too_large = ApiError(413, "RequestEntityTooLarge", text)
            return web.json_response(too_large.status(), status=413)

    def _admit(self, request: web.Request) -> None:
        # The Host header keeps web pages out that point a name of theirs at this machine.
        host = request.host.rpartition(":")[0] or request.host
        if host not in _LOOPBACK:
            raise ApiError(403, "Forbidden", f"forbidden: the host {host!r} is not served here", {})
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        expected = self._token.encode()
        if scheme != "Bearer" or not hmac.compare_digest(token.encode(), expected):
            raise ApiError(401, "Unauthorized", "Unauthorized")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"].strip("/")
        if path in ("healthz", "livez", "readyz"):
            return web.Response(text="ok")
        target = self._target(path.split("/"))
        if target is None:
            if request.method != "GET":
                raise page_not_found()
            return web.json_response(discovery.answer(path, self.registry.resources()))
        if target.name:
            return await self._answer_object(request, target)
        if request.method == "POST":
            body = await _body(request)
            made = self.registry.create(
                target.resource, target.namespace, body, _strictness(request)
            )
            return self._written(request, target.resource, made)
        if request.method == "DELETE":
            return await self._delete_collection(request, target)
        if request.method != "GET":
            raise _not_allowed()
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, target)
        return self._list(request, target)

    def _target(self, parts: list[str]) -> Target | None:
        if len(parts) > 2 and parts[:2] == ["api", "v1"]:
            group, version, rest = "", "v1", parts[2:]
        elif len(parts) > 3 and parts[0] == "apis":
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        resource = self.registry.resource(group, version, rest[0])
        if resource is None or len(rest) > 3:
            raise page_not_found()
        name, subresource = [*rest[1:], "", ""][:2]
        if subresource and subresource not in resource.subresources:
            raise page_not_found()
        if name and resource.namespaced and not namespace:
            raise page_not_found()
        return Target(resource, namespace, name, subresource)

    async def _answer_object(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, sub = target.resource, target.subresource
        if sub == "log" and request.method == "GET":
            return await self._log(request, target)
        if sub == "binding" and request.method == "POST":
            return self._bind(target, await _body(request))
        if request.method == "GET":
            item = self.registry.get(resource, target.key)
            return _respond(request, resource, item)
        if request.method == "DELETE" and not sub:
            options = await _delete_options(request)
            return self._deleted(
                request, target, self.registry.delete(resource, target.key, options)
            )
        if request.method == "PUT":
            return await self._replace(request, target)
        if request.method == "PATCH":
            return await self._patch(request, target)
        raise _not_allowed()

    async def _replace(self, request: web.Request, target: Target) -> web.Response:
        body = await _body(request)
        self.registry.get(target.resource, target.key)
        blind = not lookup(body, "metadata.resourceVersion")
        if blind and not target.resource.allows_blind_update:
            field = "metadata.resourceVersion"
            cause = Cause.invalid(field, 0, "must be specified for an update")
            raise invalid(target.resource.id, target.name, [cause])
        changed = self.registry.update(
            target.resource, target.key, lambda _: body, target.subresource, _strictness(request)
        )
        return self._written(request, target.resource, changed)

    async def _patch(self, request: web.Request, target: Target) -> web.Response:
        resource, kind = target.resource, request.content_type
        if kind == APPLY:
            return await self._apply(request, target)
        change = _PATCHES.get(kind)
        if change is None or (resource.custom and change is patch.strategic_merge_patch):
            accepted = [*_PATCHES, APPLY]
            if resource.custom:
                accepted.remove("application/strategic-merge-patch+json")
            raise _unsupported(accepted)
        body = await _body(request)
        changed = self.registry.update(
            resource,
            target.key,
            lambda old: change(old, body),
            target.subresource,
            _strictness(request),
        )
        return self._written(request, resource, changed)

    async def _apply(self, request: web.Request, target: Target) -> web.Response:
        """Server-side apply, each manager by itself: there are no conflicts."""
        resource, body = target.resource, await _body(request)
        manager = request.query.get("fieldManager")
        if not manager:
            cause = Cause.required("fieldManager", "is required for apply patch")
            raise invalid(("PatchOptions", "meta.k8s.io"), "", [cause])
        if not isinstance(body, dict):
            raise bad_request("the body of an apply patch must be an object")
        old = self.registry.storage.get(resource.id, target.key)
        if old is None:
            body.setdefault("metadata", {}).setdefault("name", target.name)
            written = self.registry.create(resource, target.namespace, body, _strictness(request))
        else:
            before = self._applied.get((old["metadata"]["uid"], manager))
            written = self.registry.update(
                resource,
                target.key,
                lambda item: patch.apply(item, body, before),
                target.subresource,
                _strictness(request),
            )
        self._applied[(written.item["metadata"]["uid"], manager)] = body
        return self._written(request, resource, written)

    def _bind(self, target: Target, body: Json) -> web.Response:
        def bind(pod: Json) -> Json:
            if node := pod["spec"].get("nodeName"):
                why = f'pod {target.name} is already assigned to node "{node}"'
                raise conflict(("pods/binding", ""), target.name, why)
            pod["spec"]["nodeName"] = lookup(body, "target.name") or ""
            condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}
            pod["status"] = patch.strategic_merge_patch(
                pod.get("status", {}), {"conditions": [condition]}
            )
            return pod

        self.registry.update(target.resource, target.key, bind, "binding")
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return web.json_response(status | {"code": 201}, status=201)

    def _written(self, request: web.Request, resource: Resource, written: Written) -> web.Response:
        response = _respond(request, resource, written.item, 201 if written.created else 200)
        for warning in written.warnings:
            response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return response

    def _deleted(self, request: web.Request, target: Target, written: Written) -> web.Response:
        if not written.removed or target.resource is PODS:
            return self._written(request, target.resource, written)
        details = {"name": target.name, "kind": target.resource.plural}
        details |= {"group": target.resource.group} if target.resource.group else {}
        details |= {"uid": written.item["metadata"]["uid"]}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        written.item = status | {"details": details}
        return self._written(request, target.resource, written)

    async def _delete_collection(self, request: web.Request, target: Target) -> web.Response:
        resource, options = target.resource, await _delete_options(request)
        if resource.namespaced and not target.namespace:
            raise _not_allowed()
        items = [
            item
            for item in self.registry.storage.list(resource.id, target.namespace)
            if _selector(request, resource)(item)
        ]
        for item in items:
            self.registry.delete(resource, (target.namespace, item["metadata"]["name"]), options)
        return web.json_response(self._list_body(resource, items))

    def _list(self, request: web.Request, target: Target) -> web.Response:
        resource, storage = target.resource, self.registry.storage
        version = _version(request)
        if version > storage.revision:
            text = f"Timeout: Too large resource version: {version}, current: {storage.revision}"
            raise ApiError(504, "Timeout", text, {"retryAfterSeconds": 1})
        matches = _selector(request, resource)
        items = [i for i in storage.list(resource.id, target.namespace) if matches(i)]
        limit, start = int(request.query.get("limit") or 0), request.query.get("continue")
        if start:
            after = _decode_continue(start)
            items = [item for item in items if _key(item) > after]
        more: Json = {}
        if limit and len(items) > limit:
            token = json.dumps(_key(items[limit - 1])).encode()
            more["continue"] = base64.urlsafe_b64encode(token).decode()
            more["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        meta = {"resourceVersion": str(storage.revision)} | more
        wanted = _wanted(request)
        if wanted == "Table":
            return web.json_response(tables.table(resource, items, meta))
        if wanted == "PartialObjectMetadataList":
            head = {"kind": wanted, "apiVersion": "meta.k8s.io/v1", "metadata": meta}
            return web.json_response(head | {"items": [tables.partial(item) for item in items]})
        return web.json_response(self._list_body(resource, items) | {"metadata": meta})

    def _list_body(self, resource: Resource, items: list[Json]) -> Json:
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        meta = {"resourceVersion": str(self.registry.storage.revision)}
        return head | {"metadata": meta, "items": items}

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        asked = request.query
        initial = asked.get("sendInitialEvents") == "true"
        if initial and asked.get("resourceVersionMatch") != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            cause = Cause.forbidden("resourceVersionMatch", text)
            raise invalid(("ListOptions", "meta.k8s.io"), "", [cause])
        _version(request)
        events = self._events(request, target, initial)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        timeout = float(asked.get("timeoutSeconds") or random.randint(1800, 3600))  # noqa: S311 - spread
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(timeout):
                async for event in events:
                    await response.write(json.dumps(event).encode() + b"\n")
        with suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _events(
        self, request: web.Request, target: Target, initial: bool
    ) -> AsyncIterator[Json]:
        resource, storage = target.resource, self.registry.storage
        matches = _selector(request, resource)
        since, bookmarks = _version(request), request.query.get("allowWatchBookmarks") == "true"
        first = True

        def event(kind: str, item: Json) -> Json:
            nonlocal first
            shown, first = _shape(request, resource, item, first), False
            return {"type": kind, "object": shown}

        if initial or not since:
            since = storage.revision
            for item in storage.list(resource.id, target.namespace):
                if matches(item):
                    yield event("ADDED", item)
        if initial and bookmarks:
            yield _bookmark(resource, since, {"k8s.io/initial-events-end": "true"})
        changes = aiter(storage.changes(resource.id, since))
        waiting = asyncio.ensure_future(anext(changes))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=BOOKMARK_SECONDS)
                if not done:
                    if bookmarks:
                        yield _bookmark(resource, max(since, storage.revision))
                    continue
                change = waiting.result()
                waiting = asyncio.ensure_future(anext(changes))
                old, new = (
                    item
                    if item is not None
                    and target.namespace in ("", item["metadata"].get("namespace", ""))
                    and matches(item)
                    else None
                    for item in (change.old, change.new)
                )
                if new is not None:
                    yield event("ADDED" if old is None else "MODIFIED", new)
                elif old is not None:
                    last = change.new or change.old or {}
                    yield event("DELETED", last)
        except ApiError as error:
            yield {"type": "ERROR", "object": error.status()}
        finally:
            waiting.cancel()

    async def _log(self, request: web.Request, target: Target) -> web.StreamResponse:
        pod = self.registry.get(target.resource, target.key)
        container = logs.choose_container(pod, request.query.get("container"))

        def find() -> Json | None:
            return self.registry.storage.get(target.resource.id, target.key)

        return await logs.serve(request, self._logs, find, container)


async def _body(request: web.Request) -> Value:
    kind = request.content_type
    if kind == protobuf.CONTENT_TYPE:
        return protobuf.decode(await request.read())
    text = await request.text()
    if kind not in ("application/json", "application/yaml", APPLY, *_PATCHES):
        raise _unsupported(["application/json", "application/yaml", protobuf.CONTENT_TYPE])
    try:
        return yaml.safe_load(text) if kind.endswith("yaml") else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from error


async def _delete_options(request: web.Request) -> Json:
    options = await _body(request) if request.can_read_body and await request.read() else {}
    if not isinstance(options, dict):
        raise bad_request("DeleteOptions must be an object")
    query = request.query
    if "propagationPolicy" in query:
        options["propagationPolicy"] = query["propagationPolicy"]
    if "gracePeriodSeconds" in query:
        options["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
    return options


def _version(request: web.Request) -> int:
    text = request.query.get("resourceVersion") or "0"
    if not text.isdecimal():
        raise bad_request(f'resourceVersion: Invalid value: "{text}": invalid syntax')
    return int(text)


def _selector(request: web.Request, resource: Resource) -> Predicate:
    query = request.query
    return selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))


def _strictness(request: web.Request) -> str:
    return request.query.get("fieldValidation") or "Warn"


def _wanted(request: web.Request) -> str:
    """The form an Accept header asks for first: Table, PartialObjectMetadata(List) or ""."""
    for option in request.headers.get("Accept", "").split(","):
        parameters = dict(p.strip().partition("=")[::2] for p in option.split(";")[1:])
        if "as" in parameters and parameters.get("g") == "meta.k8s.io":
            return parameters["as"]
        if option.strip().startswith("application/json"):
            break
    return ""


def _shape(request: web.Request, resource: Resource, item: Json, with_columns: bool = True) -> Json:
    wanted = _wanted(request)
    if item.get("kind") == "Status":
        return item
    if wanted == "Table":
        meta = {"resourceVersion": item["metadata"]["resourceVersion"]}
        return tables.table(resource, [item], meta, with_columns)
    return tables.partial(item) if wanted.startswith("PartialObjectMetadata") else item


def _respond(
    request: web.Request, resource: Resource, item: Json, status: int = 200
) -> web.Response:
    return web.json_response(_shape(request, resource, item), status=status)


def _bookmark(resource: Resource, revision: int, annotations: Json | None = None) -> Json:
    meta: Json = {"resourceVersion": str(revision)}
    meta |= {"annotations": annotations} if annotations else {}
    head = {"kind": resource.kind, "apiVersion": resource.api_version}
    return {"type": "BOOKMARK", "object": head | {"metadata": meta}}


def _key(item: Json) -> Key:
    return (item["metadata"].get("namespace", ""), item["metadata"]["name"])


def _decode_continue(token: str) -> Key:
    try:
        namespace, name = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, binascii.Error) as error:
        raise bad_request(f"invalid continue token: {error}") from error
    return (str(namespace), str(name))


def _unsupported(accepted: list[str]) -> ApiError:
    text = "the body of the request was in an unknown format - accepted media types include: "
    return ApiError(415, "UnsupportedMediaType", text + ", ".join(accepted))


def _not_allowed() -> ApiError:
    text = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", text, {})
