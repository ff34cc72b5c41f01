"""The HTTP side of the API server: authentication, routing, and the form of responses."""

from __future__ import annotations

import copy
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from sd_operator.standalone import discovery, logs, patch, requests, tables, watches
from sd_operator.standalone.database import Key
from sd_operator.standalone.errors import (
    ApiError,
    Cause,
    Json,
    bad_request,
    conflict,
    invalid,
    page_not_found,
)
from sd_operator.standalone.registry import Registry, Written, now
from sd_operator.standalone.resources import DEFINITIONS, PODS, Resource
from sd_operator.standalone.selectors import lookup
from sd_operator.standalone.storage import Storage

BODY_LIMIT = 3 * 1024 * 1024
_UPDATED = {DEFINITIONS.kind: "spec", "Secret": "data"}
"""The kinds whose objects the server updates when it starts, each with the updated field."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Target:
    """The parts of a request's path."""

    resource: Resource
    namespace: str
    """Empty for cluster-scoped resources, and for a list of all namespaces."""
    name: str
    """Empty for a collection."""
    subresource: str
    """Empty for the object itself."""

    @property
    def key(self) -> Key:
        """The object's key in the storage."""
        return (self.namespace, self.name)


class ApiServer:
    """Serves requests that have the token and a loopback name in the Host header."""

    def __init__(self, token: str, log_folder: Path, storage: Storage | None = None) -> None:
        self.registry = Registry(storage)
        self._token = token
        self._logs = log_folder

    def provide(self, item: Json) -> None:
        """Create an object when the server starts; update a CRD or a Secret that already exists."""
        group, _, version = item["apiVersion"].rpartition("/")
        plural = item["kind"].lower() + "s"
        resource = self.registry.resource(group, version, plural)
        if resource is None:
            raise page_not_found()
        key = requests.key_of(item)
        if self.registry.storage.get(resource.id, key) is None:
            self.registry.create(resource, key[0], item, "Strict")
        elif (content := _UPDATED.get(item["kind"])) is not None:
            self.registry.update(resource, key, lambda old: old | {content: item[content]})

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            self._admit(request)
            server = self._dry_run_copy() if await requests.is_dry_run(request) else self
            return await server._answer(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        except web.HTTPRequestEntityTooLarge:
            text = f"Request entity too large: limit is {BODY_LIMIT}"
            too_large = ApiError(413, "RequestEntityTooLarge", text)
            return web.json_response(too_large.status(), status=413)

    def _dry_run_copy(self) -> ApiServer:
        """Return a server with a copy of all objects, for dry runs."""
        server = copy.copy(self)
        server.registry = self.registry.copy()
        return server

    def _admit(self, request: web.Request) -> None:
        # The check of the Host header stops web pages whose name resolves to this machine.
        host = request.host.rpartition(":")[0] or request.host
        if host not in _LOOPBACK:
            text = f"forbidden: this server does not serve the host {host!r}"
            raise ApiError(403, "Forbidden", text, {})
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        # aiohttp decodes bytes that are not UTF-8 as surrogates.
        sent, expected = token.encode(errors="surrogateescape"), self._token.encode()
        if scheme != "Bearer" or not hmac.compare_digest(sent, expected):
            raise ApiError(401, "Unauthorized", "Unauthorized")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"].strip("/")
        if path in ("healthz", "livez", "readyz"):
            return web.Response(text="ok")
        target = self._target(path.split("/"))
        if target is None:
            if request.method != "GET":
                raise page_not_found()
            if path == "openapi/v2":
                return discovery.openapi_v2(request)
            return web.json_response(discovery.document(path, self.registry.resources()))
        if target.name:
            return await self._answer_object(request, target)
        if request.method == "POST":
            body = await requests.body(request)
            created = self.registry.create(
                target.resource, target.namespace, body, requests.strictness(request)
            )
            return self._written(request, target.resource, created)
        if request.method == "DELETE":
            return await self._delete_collection(request, target)
        if request.method != "GET":
            raise _not_allowed()
        if request.query.get("watch") in ("1", "true"):
            return await watches.serve(
                request, self.registry.storage, target.resource, target.namespace
            )
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
            return self._bind(target, await requests.body(request))
        if request.method == "GET":
            item = self.registry.get(resource, target.key)
            return web.json_response(requests.shape(request, resource, item))
        if request.method == "DELETE" and not sub:
            options = await requests.delete_options(request)
            return self._deleted(
                request, target, self.registry.delete(resource, target.key, options)
            )
        if request.method == "PUT":
            return await self._replace(request, target)
        if request.method == "PATCH":
            return await self._patch(request, target)
        raise _not_allowed()

    async def _replace(self, request: web.Request, target: Target) -> web.Response:
        body = await requests.body(request)
        self.registry.get(target.resource, target.key)
        unconditional = not lookup(body, "metadata.resourceVersion")
        if unconditional and not target.resource.allows_unconditional_update:
            field = "metadata.resourceVersion"
            cause = Cause.invalid(field, 0, "must be specified for an update")
            raise invalid(target.resource.id, target.name, [cause])
        changed = self.registry.update(
            target.resource,
            target.key,
            lambda _: body,
            target.subresource,
            requests.strictness(request),
        )
        return self._written(request, target.resource, changed)

    async def _patch(self, request: web.Request, target: Target) -> web.Response:
        resource, kind = target.resource, request.content_type
        if kind == requests.APPLY:
            return await self._apply(request, target)
        change = requests.PATCHES.get(kind)
        if change is None or (resource.custom and change is patch.strategic_merge_patch):
            accepted = [*requests.PATCHES, requests.APPLY]
            if resource.custom:
                accepted.remove("application/strategic-merge-patch+json")
            raise requests.unsupported(accepted)
        body = await requests.body(request)
        changed = self.registry.update(
            resource,
            target.key,
            lambda old: change(old, body),
            target.subresource,
            requests.strictness(request),
        )
        return self._written(request, resource, changed)

    async def _apply(self, request: web.Request, target: Target) -> web.Response:
        """Apply a manifest for one field manager. Managers never conflict."""
        resource, body = target.resource, await requests.body(request)
        manager = request.query.get("fieldManager")
        if not manager:
            cause = Cause.required("fieldManager", "is required for apply patch")
            raise invalid(("PatchOptions", "meta.k8s.io"), "", [cause])
        if not isinstance(body, dict):
            raise bad_request("the body of an apply patch must be an object")
        old = self.registry.storage.get(resource.id, target.key)
        if old is None:
            body.setdefault("metadata", {}).setdefault("name", target.name)
            written = self.registry.create(
                resource, target.namespace, body, requests.strictness(request)
            )
        else:
            before = self.registry.storage.applied(old["metadata"]["uid"], manager)
            written = self.registry.update(
                resource,
                target.key,
                lambda item: patch.apply(item, body, before),
                target.subresource,
                requests.strictness(request),
            )
        self.registry.storage.set_applied(written.item["metadata"]["uid"], manager, body)
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
        body = requests.shape(request, resource, written.item)
        response = web.json_response(body, status=201 if written.created else 200)
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
        resource, options = target.resource, await requests.delete_options(request)
        if resource.namespaced and not target.namespace:
            raise _not_allowed()
        items = [
            item
            for item in self.registry.storage.list(resource.id, target.namespace)
            if requests.predicate(request, resource)(item)
        ]
        for item in items:
            self.registry.delete(resource, (target.namespace, item["metadata"]["name"]), options)
        return web.json_response(self._list_body(resource, items))

    def _list(self, request: web.Request, target: Target) -> web.Response:
        resource, storage = target.resource, self.registry.storage
        version = requests.whole(request, "resourceVersion")
        if version > storage.revision:
            text = f"Timeout: Too large resource version: {version}, current: {storage.revision}"
            raise ApiError(504, "Timeout", text, {"retryAfterSeconds": 1})
        matches = requests.predicate(request, resource)
        items = [i for i in storage.list(resource.id, target.namespace) if matches(i)]
        limit, start = requests.whole(request, "limit"), request.query.get("continue")
        if start:
            after = requests.continue_after(start, storage.first)
            items = [item for item in items if requests.key_of(item) > after]
        rest: Json = {}
        if limit and len(items) > limit:
            rest["continue"] = requests.continue_token(items[limit - 1], storage.revision)
            rest["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        meta = {"resourceVersion": str(storage.revision)} | rest
        form = requests.accepted_form(request)
        if form == "Table":
            return web.json_response(requests.table(request, resource, items, meta))
        if form == "PartialObjectMetadataList":
            head = {"kind": form, "apiVersion": "meta.k8s.io/v1", "metadata": meta}
            return web.json_response(head | {"items": [tables.partial(item) for item in items]})
        return web.json_response(self._list_body(resource, items) | {"metadata": meta})

    def _list_body(self, resource: Resource, items: list[Json]) -> Json:
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        meta = {"resourceVersion": str(self.registry.storage.revision)}
        return head | {"metadata": meta, "items": items}

    async def _log(self, request: web.Request, target: Target) -> web.StreamResponse:
        pod = self.registry.get(target.resource, target.key)
        container = logs.choose_container(pod, request.query.get("container"))

        def find() -> Json | None:
            return self.registry.storage.get(target.resource.id, target.key)

        return await logs.serve(request, self._logs, find, container)


def _not_allowed() -> ApiError:
    text = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", text, {})
