"""What a request says: its body, its query, the form of answer it accepts."""

from __future__ import annotations

import base64
import binascii
import json

import yaml
from aiohttp import web

from sd_operator.standalone import patch, protobuf, tables
from sd_operator.standalone.errors import ApiError, Cause, Json, Value, bad_request, invalid
from sd_operator.standalone.resources import Resource
from sd_operator.standalone.selectors import Predicate, selector
from sd_operator.standalone.storage import Key

APPLY = "application/apply-patch+yaml"
PATCHES = {
    "application/json-patch+json": patch.json_patch,
    "application/merge-patch+json": patch.merge_patch,
    "application/strategic-merge-patch+json": patch.strategic_merge_patch,
}
_OPTIONS = {
    "POST": "CreateOptions",
    "PUT": "UpdateOptions",
    "PATCH": "PatchOptions",
    "DELETE": "DeleteOptions",
}
_VALIDATIONS = ["", "Ignore", "Strict", "Warn"]
_BODIES = ["application/json", "application/yaml", protobuf.CONTENT_TYPE]


async def body(request: web.Request) -> Value:
    """The body, whatever format it has."""
    kind = request.content_type
    if kind == protobuf.CONTENT_TYPE:
        return protobuf.decode(await request.read())
    if kind not in (*_BODIES, APPLY, *PATCHES):
        raise unsupported(_BODIES)
    text = await request.text()
    try:
        return yaml.safe_load(text) if kind.endswith("yaml") else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from error


async def delete_options(request: web.Request) -> Json:
    """DeleteOptions, from the body and from the query."""
    options = await body(request) if await request.read() else {}
    if not isinstance(options, dict):
        raise bad_request("DeleteOptions must be an object")
    if policy := request.query.get("propagationPolicy"):
        options["propagationPolicy"] = policy
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = whole(request, "gracePeriodSeconds")
    return options


def whole(request: web.Request, name: str) -> int:
    """A number of the query; 0 where it is absent."""
    text = request.query.get(name) or "0"
    if not (text.isascii() and text.isdecimal()):
        raise bad_request(f'{name}: strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def predicate(request: web.Request, resource: Resource) -> Predicate:
    """Whether an object is asked for by label and field selector."""
    query = request.query
    return selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))


def strictness(request: web.Request) -> str:
    """What to do about unknown fields: Ignore, Warn or Strict."""
    return request.query.get("fieldValidation") or "Warn"


async def is_dry_run(request: web.Request) -> bool:
    """Whether a write is only tried; 422 where options of a write have no such value."""
    form = _OPTIONS.get(request.method)
    if form is None:
        return False
    asked = request.query.getall("dryRun", [])
    if form == "DeleteOptions":
        asked = asked or (await delete_options(request)).get("dryRun") or []
    causes = []
    if asked not in ([], ["All"]):
        causes.append(Cause.unsupported("dryRun", asked, ["All"]))
    validation = request.query.get("fieldValidation", "")
    if validation not in _VALIDATIONS:
        causes.append(Cause.unsupported("fieldValidation", validation, _VALIDATIONS))
    if causes:
        raise invalid((form, "meta.k8s.io"), "", causes)
    return bool(asked)


def wanted(request: web.Request) -> str:
    """The form an Accept header asks for first: Table, PartialObjectMetadata(List) or ""."""
    for option in request.headers.get("Accept", "").split(","):
        kind, *parts = option.split(";")
        parameters = dict(part.strip().partition("=")[::2] for part in parts)
        if "as" in parameters and parameters.get("g") == "meta.k8s.io":
            return parameters["as"]
        if kind.strip() == "application/json":
            break
    return ""


def shape(request: web.Request, resource: Resource, item: Json, with_columns: bool = True) -> Json:
    """An object in the form that is asked for."""
    form = wanted(request)
    if item.get("kind") == "Status":
        return item
    if form == "Table":
        meta = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
        return tables.table(resource, [item], meta, with_columns)
    return tables.partial(item) if form.startswith("PartialObjectMetadata") else item


def key_of(item: Json) -> Key:
    """An object's key in the storage."""
    return (item["metadata"].get("namespace", ""), item["metadata"]["name"])


def continue_token(last: Json) -> str:
    """Says that a list went as far as this object."""
    return base64.urlsafe_b64encode(json.dumps(key_of(last)).encode()).decode()


def continue_after(token: str) -> Key:
    """The key of the last object of the page before."""
    try:
        namespace, name = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError, binascii.Error) as error:
        raise bad_request(f"invalid continue token: {error}") from error
    return (str(namespace), str(name))


def unsupported(accepted: list[str]) -> ApiError:
    """415: the body is of no known type."""
    text = "the body of the request was in an unknown format - accepted media types include: "
    return ApiError(415, "UnsupportedMediaType", text + ", ".join(accepted))
