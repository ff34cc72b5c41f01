"""Reads requests: body, query parameters, and the format that the client wants for the response."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

import yaml
from aiohttp import web

from sd_operator.standalone import patch, protobuf, tables
from sd_operator.standalone.database import Key
from sd_operator.standalone.errors import (
    ApiError,
    Cause,
    Json,
    Value,
    bad_request,
    expired,
    invalid,
    quote,
)
from sd_operator.standalone.resources import Resource
from sd_operator.standalone.selectors import Predicate, selector

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
    """Return the parsed body of a request; raise 415 for an unknown format."""
    kind = request.content_type
    if kind == protobuf.CONTENT_TYPE:
        return protobuf.decode(await request.read())
    if kind not in (*_BODIES, APPLY, *PATCHES):
        raise unsupported(_BODIES)
    encoded = await request.read()
    try:
        text = encoded.decode()
        return _as_in_go(yaml.safe_load(text) if kind.endswith("yaml") else json.loads(text))
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from error


def _as_in_go(value: Value) -> Value:
    """Return a parsed body in which an integer of more than 64 bits is a float, as with Go."""
    match value:
        case dict():
            return {name: _as_in_go(item) for name, item in value.items()}
        case list():
            return [_as_in_go(item) for item in value]
        case int() if not -(2**63) <= value < 2**63:
            return float(value)
    return value


async def delete_options(request: web.Request) -> Json:
    """Return the DeleteOptions of the body, overridden by those of the query."""
    options = await body(request) if await request.read() else {}
    if not isinstance(options, dict):
        raise bad_request("DeleteOptions must be an object")
    if policy := request.query.get("propagationPolicy"):
        options["propagationPolicy"] = policy
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = whole(request, "gracePeriodSeconds")
    return options


def whole(request: web.Request, name: str) -> int:
    """Return an integer of the query; 0 if it is absent; raise 400 if it is not an integer."""
    text = request.query.get(name) or "0"
    if not (text.isascii() and text.isdecimal()):
        raise bad_request(f'{name}: strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def predicate(request: web.Request, resource: Resource) -> Predicate:
    """Return a predicate for objects that match the label and field selectors of the query."""
    query = request.query
    return selector(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))


def strictness(request: web.Request) -> str:
    """Return how to treat unknown fields: Ignore, Warn or Strict."""
    return request.query.get("fieldValidation") or "Warn"


async def is_dry_run(request: web.Request) -> bool:
    """Return whether a write is only a dry run; raise 422 if an option has an invalid value."""
    form = _OPTIONS.get(request.method)
    if form is None:
        return False
    dry_run = request.query.getall("dryRun", [])
    if form == "DeleteOptions":
        dry_run = dry_run or (await delete_options(request)).get("dryRun") or []
    causes = []
    if dry_run not in ([], ["All"]):
        causes.append(Cause.unsupported("dryRun", dry_run, ["All"]))
    validation = request.query.get("fieldValidation", "")
    if validation not in _VALIDATIONS:
        causes.append(Cause.unsupported("fieldValidation", validation, _VALIDATIONS))
    if causes:
        raise invalid((form, "meta.k8s.io"), "", causes)
    return bool(dry_run)


def accepted_form(request: web.Request) -> str:
    """Return the preferred form of the Accept header: Table, PartialObjectMetadata(List) or ""."""
    for option in request.headers.get("Accept", "").split(","):
        kind, *parts = option.split(";")
        parameters = dict(part.strip().partition("=")[::2] for part in parts)
        if "as" in parameters and parameters.get("g") == "meta.k8s.io":
            return parameters["as"]
        if kind.strip() == "application/json":
            break
    return ""


def table(
    request: web.Request,
    resource: Resource,
    items: Sequence[Json],
    meta: Json,
    with_columns: bool = True,
) -> Json:
    """Return the objects as a Table. Raise 400 for an unknown value of includeObject.

    The query parameter includeObject selects what each row contains of its object: the metadata
    (the default), the whole object, or nothing.
    """
    include = request.query.get("includeObject", "")
    if include not in tables.INCLUDED:
        raise bad_request(
            "Unable to convert to Table as requested: includeObject: Invalid value:"
            f" {quote(include)}: must be 'Metadata', 'Object', 'None', or empty"
        )
    return tables.table(resource, items, meta, include, with_columns)


def shape(request: web.Request, resource: Resource, item: Json, with_columns: bool = True) -> Json:
    """Return an object in the form that the client accepts."""
    form = accepted_form(request)
    if item.get("kind") == "Status":
        return item
    if form == "Table":
        meta = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
        return table(request, resource, [item], meta, with_columns)
    return tables.partial(item) if form.startswith("PartialObjectMetadata") else item


def key_of(item: Json) -> Key:
    """Return an object's key in the storage."""
    return (item["metadata"].get("namespace", ""), item["metadata"]["name"])


def continue_token(last: Json, revision: int) -> str:
    """Return the token for the page of a list that starts after this object."""
    return base64.urlsafe_b64encode(json.dumps([revision, *key_of(last)]).encode()).decode()


def continue_after(token: str, oldest: int) -> Key:
    """Return the key of the object that a continue token was made for.

    Raise 410 if the token was made before the oldest revision, that is, by an earlier run.
    """
    try:
        revision, namespace, name = json.loads(base64.urlsafe_b64decode(token))
        is_old = int(revision) < oldest
    except (ValueError, TypeError, binascii.Error) as error:
        raise bad_request(f"invalid continue token: {error}") from error
    if is_old:
        raise expired(
            "The provided continue parameter is too old to display a consistent list result. You"
            " must start a new list without the continue parameter."
        )
    return (str(namespace), str(name))


def unsupported(accepted: list[str]) -> ApiError:
    """415: the body has an unknown format."""
    text = "the body of the request was in an unknown format - accepted media types include: "
    return ApiError(415, "UnsupportedMediaType", text + ", ".join(accepted))
