"""Discovery and OpenAPI documents, from which clients learn which resources exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from sd_operator.standalone.errors import Json, page_not_found
from sd_operator.standalone.resources import Resource

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+sd-operator-standalone",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "",
}
_OPENAPI_V2 = {"swagger": "2.0", "info": {"title": "", "version": ""}, "paths": {}}
"""A document without kinds.

kubectl takes schemas from OpenAPI v3. It reads v2 only before it applies a file of kind List, and
leaves the validation of kinds that v2 lacks to the server.
"""
_OPENAPI_V2_PROTOBUF = b"\n\x032.0"
"""The OpenAPI v2 document without kinds in protobuf: field 1 is the version."""
_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUB_VERBS = {"log": ["get"], "binding": ["create"], "finalize": ["update"]}


def _paths(resources: Iterable[Resource]) -> dict[str, list[Resource]]:
    """Return the resources by the path of their group version, such as `apis/apps/v1`."""
    paths: dict[str, list[Resource]] = {}
    for resource in resources:
        prefix = "apis" if resource.group else "api"
        paths.setdefault(f"{prefix}/{resource.api_version}", []).append(resource)
    return paths


def document(path: str, resources: Iterable[Resource]) -> Json:
    """Return the discovery document at a path; raise 404 if there is no document."""
    groups = _paths(resources)
    if path == "version":
        return VERSION
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "apis":
        members = sorted({p.split("/")[1] for p in groups if p.startswith("apis/")})
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(name, groups) for name in members],
        }
    if path in groups:
        return _resource_list(groups[path])
    if path == "openapi/v3":
        return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in groups}}
    if path.startswith("openapi/v3/") and path.removeprefix("openapi/v3/") in groups:
        return _openapi(groups[path.removeprefix("openapi/v3/")])
    name = path.removeprefix("apis/")
    if any(member.split("/")[1] == name for member in groups if member.startswith("apis/")):
        return {"kind": "APIGroup", "apiVersion": "v1"} | _group(name, groups)
    raise page_not_found()


def openapi_v2(request: web.Request) -> web.Response:
    """Answer with the OpenAPI v2 document; kubectl asks for it as protobuf."""
    if "protobuf" in request.headers.get("Accept", ""):
        return web.Response(body=_OPENAPI_V2_PROTOBUF, content_type=_PROTOBUF)
    return web.json_response(_OPENAPI_V2)


def _group(name: str, groups: Iterable[str]) -> Json:
    versions = [
        {"groupVersion": path.removeprefix("apis/"), "version": path.split("/")[2]}
        for path in groups
        if path.startswith(f"apis/{name}/")
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _resource_list(resources: Iterable[Resource]) -> Json:
    entries: list[Json] = []
    version = ""
    for resource in resources:
        version = resource.api_version
        base = {"namespaced": resource.namespaced, "kind": resource.kind}
        names: Json = {"name": resource.plural, "singularName": resource.kind.lower()}
        names |= {"shortNames": list(resource.short_names)} if resource.short_names else {}
        names |= {"categories": list(resource.categories)} if resource.categories else {}
        entries.append(names | base | {"verbs": _VERBS})
        for sub in resource.subresources:
            verbs = _SUB_VERBS.get(sub, ["get", "patch", "update"])
            name = {"name": f"{resource.plural}/{sub}", "singularName": ""}
            entries.append(name | base | {"verbs": verbs})
    kind = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
    return kind | {"resources": entries}


def _openapi(resources: Iterable[Resource]) -> Json:
    """Return the parts of OpenAPI v3 that kubectl reads: schemas, and fieldValidation of PATCH."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for resource in resources:
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        prefix = "apis" if resource.group else "api"
        namespace = "/namespaces/{namespace}" if resource.namespaced else ""
        path = f"/{prefix}/{resource.api_version}{namespace}/{resource.plural}/{{name}}"
        parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        patch = {"parameters": [parameter], "x-kubernetes-group-version-kind": gvk}
        paths[path] = {"patch": patch | {"x-kubernetes-action": "patch"}}
        name = f"{resource.group or 'core'}.{resource.version}.{resource.kind}"
        schemas[name] = resource.schema | {"x-kubernetes-group-version-kind": [gvk]}
    info = {"title": "sd-operator standalone", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
