"""Object metadata: validation, the fields that only the server sets, and deletion policies."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kubernetes.aio.client import models

from sd_api.crd import structural
from sd_operator.standalone.errors import Cause, Json, Value, bad_request, invalid, quote
from sd_operator.standalone.resources import JOBS, NAMESPACES, Resource
from sd_operator.standalone.schema import prune, validate

LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
NAME_PART = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
VALUE = f"({NAME_PART})?"
_ENDS = "and must start and end with an alphanumeric character"
SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or"
    f" '.', {_ENDS} (e.g. 'example.com', regex used for validation is '{SUBDOMAIN}')"
)
LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-',"
    f" {_ENDS} (e.g. 'my-name',  or '123-abc', regex used for validation is '{LABEL}')"
)
NAME_PART_RULE = (
    f"name part must consist of alphanumeric characters, '-', '_' or '.', {_ENDS} (e.g. 'MyName',"
    f"  or 'my.name',  or '123-abc', regex used for validation is '{NAME_PART}')"
)
VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.',"
    f" {_ENDS} (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is"
    f" '{VALUE}')"
)
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_POLICIES = ("Foreground", "Background", "Orphan")
_SCHEMA = structural(models.V1ObjectMeta.model_json_schema(by_alias=True))
_KEPT = ("uid", "name", "namespace", "creationTimestamp", "generation", "resourceVersion")
_KEPT_IF_SET = ("deletionTimestamp", "deletionGracePeriodSeconds", "generateName")


def check_type(resource: Resource, body: Value) -> Json:
    """Return the body if it is an object of the resource's type; raise 400 or 422 if not."""
    if not isinstance(body, dict) or not body.get("kind") or not body.get("apiVersion"):
        raise bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}):"
            f" Object 'Kind' or 'apiVersion' is missing in '{quote(body)[:200]}'"
        )
    meta = body.setdefault("metadata", {})
    if not isinstance(meta, dict):
        raise bad_request("metadata must be an object")
    if body["apiVersion"] != resource.api_version:
        raise bad_request(
            f"the API version in the data ({body['apiVersion']}) does not match the expected API"
            f" version ({resource.api_version})"
        )
    if body["kind"] != resource.kind:
        cause = Cause.invalid("kind", body["kind"], f"must be {resource.kind}")
        raise invalid((body["kind"], resource.group), meta.get("name", ""), [cause])
    return body


def prune_metadata(meta: Json) -> list[str]:
    """Drop unknown fields, managedFields, and empty labels, annotations, finalizers and owners.

    Return the paths of the unknown fields; raise 400 for a value of the wrong type.
    """
    unknown = prune(_SCHEMA, meta, "metadata")
    for cause in validate(_SCHEMA, meta, "metadata"):
        if "must be of type" in cause.message:
            raise bad_request(f"json: cannot unmarshal {cause.message}")
    meta.pop("managedFields", None)
    for empty in ("labels", "annotations", "finalizers", "ownerReferences"):
        if not meta.get(empty, True):
            del meta[empty]
    return unknown


def keep(old: Json, new: Json) -> None:
    """Undo the changes in `new` of fields that only the server may set."""
    for key in (*_KEPT, *_KEPT_IF_SET):
        new.pop(key, None)
        if key in old:
            new[key] = old[key]


def validate_metadata(resource: Resource, meta: Json, old: Json | None) -> Iterator[Cause]:
    """Yield the errors of an object's name, labels, annotations, owners and finalizers."""
    name = meta.get("name", "")
    short = resource is NAMESPACES
    if not name:
        yield Cause.required("metadata.name", "name or generateName is required")
    elif len(name) > (limit := 63 if short else 253):
        yield Cause.invalid("metadata.name", name, f"must be no more than {limit} bytes")
    elif not re.fullmatch(LABEL if short else SUBDOMAIN, name):
        rule = LABEL_RULE if short else SUBDOMAIN_RULE
        yield Cause.invalid("metadata.name", name, rule)
    yield from validate_labels(meta.get("labels", {}), "metadata.labels")
    for key in meta.get("annotations", {}):
        yield from _validate_key(key.lower(), "metadata.annotations")
    for index, owner in enumerate(meta.get("ownerReferences", ())):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield Cause.required(f"metadata.ownerReferences[{index}].{key}")
    for finalizer in meta.get("finalizers", ()):
        if finalizer not in (FOREGROUND, ORPHAN):
            yield from _validate_key(finalizer, "metadata.finalizers")
    if old is not None and "deletionTimestamp" in old["metadata"]:
        present = old["metadata"].get("finalizers", ())
        new = [f for f in meta.get("finalizers", ()) if f not in present]
        if new:
            names = ", ".join(quote(finalizer) for finalizer in new)
            text = "no new finalizers can be added if the object is being deleted, found new"
            text += f" finalizers []string{{{names}}}"
            yield Cause.forbidden("metadata.finalizers", text)


def is_label(name: str) -> bool:
    """Return whether a name is a DNS label."""
    return len(name) <= 63 and re.fullmatch(LABEL, name) is not None


def is_subdomain(name: str) -> bool:
    """Return whether a name is a DNS subdomain, as the names of most objects are."""
    return len(name) <= 253 and re.fullmatch(SUBDOMAIN, name) is not None


def validate_labels(labels: Json, field: str) -> Iterator[Cause]:
    """Yield the errors of labels."""
    for key, value in labels.items():
        yield from _validate_key(key, field)
        if len(value) > 63:
            yield Cause.invalid(field, value, "must be no more than 63 bytes")
        elif not re.fullmatch(VALUE, value):
            yield Cause.invalid(field, value, VALUE_RULE)


def _validate_key(key: str, field: str) -> Iterator[Cause]:
    prefix, slash, name = key.rpartition("/")
    if slash and not re.fullmatch(SUBDOMAIN, prefix):
        yield Cause.invalid(field, key, f"prefix part {SUBDOMAIN_RULE}")
    if len(name) > 63:
        yield Cause.invalid(field, key, "name part must be no more than 63 bytes")
    elif not re.fullmatch(NAME_PART, name):
        yield Cause.invalid(field, key, NAME_PART_RULE)


def set_propagation(resource: Resource, meta: Json, options: Json) -> list[str]:
    """Set the finalizer for the deletion's propagationPolicy; return warnings for the client."""
    policy = options.get("propagationPolicy")
    if policy not in (None, *_POLICIES):
        cause = Cause.unsupported("propagationPolicy", policy, (*_POLICIES, "nil"))
        raise invalid(("DeleteOptions", "meta.k8s.io"), "", [cause])
    finalizers = meta.get("finalizers", [])
    warnings: list[str] = []
    if policy is None and not {FOREGROUND, ORPHAN} & set(finalizers):
        policy = "Orphan" if resource is JOBS else "Background"
        if resource is JOBS:
            warnings.append(
                "child pods are preserved by default when jobs are deleted; set"
                " propagationPolicy=Background to remove them or set propagationPolicy=Orphan to"
                " suppress this warning"
            )
    if policy is not None:
        finalizers = [f for f in finalizers if f not in (FOREGROUND, ORPHAN)]
        finalizers += {"Foreground": [FOREGROUND], "Orphan": [ORPHAN]}.get(policy, [])
    meta.pop("finalizers", None)
    meta |= {"finalizers": finalizers} if finalizers else {}
    return warnings
