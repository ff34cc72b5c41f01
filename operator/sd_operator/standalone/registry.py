"""Creates, updates and deletes objects, in the same way for all kinds."""

from __future__ import annotations

import copy
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from sd_operator.standalone import builtin, metadata
from sd_operator.standalone.database import Key
from sd_operator.standalone.errors import (
    ApiError,
    Cause,
    Json,
    Value,
    about,
    bad_request,
    conflict,
    invalid,
    not_found,
)
from sd_operator.standalone.resources import (
    BUILTIN,
    DEFINITIONS,
    NAMESPACES,
    Resource,
    from_definition,
)
from sd_operator.standalone.schema import UNCHECKED, prune, set_defaults, validate
from sd_operator.standalone.storage import Storage

MODIFIED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)
SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""The letters of generated names. Without vowels they cannot form words."""
BLOCKING = {
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueNotSupported",
    "FieldValueTypeInvalid",
}
"""Reasons of causes. As on a real server, the CEL rules are not checked after such a cause."""


@dataclass
class Written:
    """The result of a write."""

    item: Json
    """The object after the write."""
    created: bool = False
    removed: bool = False
    warnings: list[str] = field(default_factory=list)
    """Warnings for the client."""


def now() -> str:
    """Return the current time in Kubernetes' format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Registry:
    """All resources and their objects."""

    def __init__(self, storage: Storage | None = None) -> None:
        self.storage = storage or Storage()
        self._builtin = {(r.group, r.version, r.plural): r for r in BUILTIN}
        self._custom: dict[tuple[str, str, str], Resource] = {}
        self._serve(DEFINITIONS)

    def copy(self) -> Registry:
        """Return a registry with a copy of all objects, for dry runs."""
        registry = copy.copy(self)
        registry.storage, registry._custom = self.storage.copy(), dict(self._custom)
        return registry

    def resources(self) -> list[Resource]:
        """Return all resources that are served now."""
        return [*self._builtin.values(), *self._custom.values()]

    def resource(self, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource with this group, version and plural; None if it is not served."""
        key = (group, version, plural)
        return self._builtin.get(key) or self._custom.get(key)

    def get(self, resource: Resource, key: Key) -> Json:
        """Return one object; raise 404 if it does not exist."""
        item = self.storage.get(resource.id, key)
        if item is None:
            raise not_found(resource.id, key[1])
        return item

    def create(self, resource: Resource, namespace: str, body: Json, strictness: str) -> Written:
        """Validate and store a new object."""
        item, warnings = self._decode(resource, body, strictness)
        meta = item["metadata"]
        if meta.setdefault("namespace", namespace) != namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the"
                " request"
            )
        if not resource.namespaced:
            del meta["namespace"]
        if meta.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        while not meta.get("name") and meta.get("generateName"):
            suffix = "".join(secrets.choice(SUFFIX_LETTERS) for _ in range(5))
            candidate = meta["generateName"][:58] + suffix
            if self.storage.get(resource.id, (namespace, candidate)) is None:
                meta["name"] = candidate
        name = meta.get("name", "")
        self._check_namespace(resource, namespace, name)
        for server_field in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
            meta.pop(server_field, None)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if resource.counts_generations:
            meta["generation"] = 1
        if "status" in resource.subresources:
            item.pop("status", None)
        builtin.set_defaults(resource, item)
        self._validate(resource, item, None)
        if self.storage.get(resource.id, (namespace, name)) is not None:
            raise about(409, "AlreadyExists", resource.id, name, "{what} already exists")
        stored = self.storage.put(resource.id, (namespace, name), item)
        self._serve(resource)
        return Written(stored, created=True, warnings=warnings)

    def update(
        self,
        resource: Resource,
        key: Key,
        change: Callable[[Json], Json],
        subresource: str = "",
        strictness: str = "Warn",
    ) -> Written:
        """Validate and store a changed object; a subresource limits what may change."""
        old = self.get(resource, key)
        item, warnings = self._decode(resource, change(copy.deepcopy(old)), strictness)
        self._check_identity(resource, key, old, item, subresource)
        if subresource in ("status", "finalize"):
            item = _only(resource, subresource, old, item)
        elif "status" in resource.subresources:
            item = {k: v for k, v in item.items() if k != "status"}
            item |= {"status": old["status"]} if "status" in old else {}
        metadata.keep(old["metadata"], item["metadata"])
        if not subresource:
            builtin.set_defaults(resource, item)
        unchanged = _content(item) == _content(old)
        if resource.counts_generations and not unchanged and subresource != "binding":
            item["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if item == old:
            return Written(old, warnings=warnings)
        self._validate(resource, item, old, check_rules=not unchanged)
        stored = self.storage.put(resource.id, key, item)
        self._serve(resource)
        if _is_finished(resource, stored):
            return Written(self._remove(resource, key), removed=True, warnings=warnings)
        return Written(stored, warnings=warnings)

    def delete(self, resource: Resource, key: Key, options: Json) -> Written:
        """Remove an object, or only mark it as being deleted while something holds it.

        Finalizers hold an object, and a node holds the Pods that it runs.
        """
        old = self.get(resource, key)
        _check_preconditions(resource, old, options.get("preconditions") or {})
        if resource is NAMESPACES and key[1] in ("default", "kube-system"):
            text = "{what} is forbidden: this namespace may not be deleted"
            raise about(403, "Forbidden", resource.id, key[1], text)
        meta = copy.deepcopy(old["metadata"])
        warnings = metadata.set_propagation(resource, meta, options)
        grace = builtin.grace_period(resource, old, options)
        if "deletionTimestamp" not in meta or grace < meta.get("deletionGracePeriodSeconds", 0):
            deadline = datetime.now(UTC) + timedelta(seconds=grace)
            meta["deletionTimestamp"] = deadline.strftime("%Y-%m-%dT%H:%M:%SZ")
            if resource is not NAMESPACES:
                meta["deletionGracePeriodSeconds"] = grace
            if resource.counts_generations:
                meta["generation"] = meta.get("generation", 0) + 1
        item = old | {"metadata": meta}
        if resource is NAMESPACES:
            item["status"] = {**old.get("status", {}), "phase": "Terminating"}
        if _is_finished(resource, item):
            return Written(self._remove(resource, key), removed=True, warnings=warnings)
        stored = self.storage.put(resource.id, key, item) if item != old else old
        return Written(stored, warnings=warnings)

    def _remove(self, resource: Resource, key: Key) -> Json:
        if resource is DEFINITIONS:
            served = [r for r in self._custom.values() if f"{r.plural}.{r.group}" == key[1]]
            for custom in served:
                for item in self.storage.list(custom.id):
                    meta = item["metadata"]
                    self.storage.remove(custom.id, (meta.get("namespace", ""), meta["name"]))
        removed = self.storage.remove(resource.id, key)
        self._serve(resource)
        return removed

    def _serve(self, resource: Resource) -> None:
        if resource is DEFINITIONS:
            definitions = self.storage.list(DEFINITIONS.id)
            served = [r for item in definitions for r in from_definition(item)]
            self._custom = {(r.group, r.version, r.plural): r for r in served}
            for custom in served:
                self.storage.convert(custom.id, partial(_as_defined, custom))

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        if not resource.namespaced:
            return
        body = self.get(NAMESPACES, ("", namespace))
        if "deletionTimestamp" in body["metadata"]:
            text = "{what} is forbidden: unable to create new content in namespace"
            why = f" {namespace} because it is being terminated"
            error = about(403, "Forbidden", resource.id, name, text + why)
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            error.details = {**(error.details or {}), "causes": [cause]}
            raise error

    def _decode(self, resource: Resource, body: Value, strictness: str) -> tuple[Json, list[str]]:
        """Return the body with defaults and without unknown fields, and warnings about these."""
        item = metadata.check_type(resource, body)
        handled = f'{resource.kind} in version "{resource.version}" cannot be handled as a'
        handled += f" {resource.kind}: "
        meta = item.pop("metadata")
        unknown = prune(resource.schema, item) + metadata.prune_metadata(meta)
        item["metadata"] = meta
        faults = [f'unknown field "{path}"' for path in unknown]
        if faults and strictness == "Strict":
            raise bad_request(f"{handled}strict decoding error: {', '.join(faults)}")
        if not resource.custom:
            builtin.check_types(resource, item, handled)
        set_defaults(resource.schema, item)
        return item, faults if strictness == "Warn" else []

    def _validate(
        self, resource: Resource, item: Json, old: Json | None, check_rules: bool = True
    ) -> None:
        causes = [*metadata.validate_metadata(resource, item["metadata"], old)]
        causes += validate(resource.schema, item)
        causes += builtin.validate(resource, item, old)
        if any(cause.reason in BLOCKING for cause in causes):
            if resource.custom:
                causes.append(Cause.invalid("<nil>", None, UNCHECKED))
        elif check_rules:
            causes += resource.rules.check(item, old)
        if causes:
            kind = (resource.kind, resource.group)
            raise invalid(kind, item["metadata"].get("name", ""), causes)

    def _check_identity(
        self, resource: Resource, key: Key, old: Json, item: Json, subresource: str
    ) -> None:
        meta = item["metadata"]
        name = meta.get("name", key[1])
        if name != key[1]:
            raise bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({key[1]})"
            )
        version = meta.get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            raise conflict(resource.id, key[1], MODIFIED)
        uid = meta.get("uid") or old["metadata"]["uid"]
        # A real API server (1.36) ignores the uid in a status patch of a custom resource.
        if uid != old["metadata"]["uid"] and not (resource.custom and subresource == "status"):
            cause = Cause.invalid("metadata.uid", uid, "field is immutable")
            raise invalid((resource.kind, resource.group), key[1], [cause])


def _as_defined(resource: Resource, item: Json) -> Json:
    """Return a stored object with the defaults and the known fields of its current definition."""
    item = copy.deepcopy(item)
    meta = item.pop("metadata")
    prune(resource.schema, item)
    set_defaults(resource.schema, item)
    return item | {"metadata": meta}


def _content(item: Json) -> Json:
    return {key: value for key, value in item.items() if key not in ("metadata", "status")}


def _only(resource: Resource, subresource: str, old: Json, new: Json) -> Json:
    """Return `old` with the value from `new` of the part that the subresource may change."""
    part = "status" if subresource == "status" else "spec"
    item = {key: value for key, value in old.items() if key != part}
    item |= {part: new[part]} if part in new else {}
    meta = dict(old["metadata"])
    if not resource.custom:
        # A status update of a built-in kind may also change labels, annotations and finalizers.
        for key in ("labels", "annotations", "finalizers"):
            meta.pop(key, None)
            meta |= {key: new["metadata"][key]} if key in new["metadata"] else {}
    return item | {"metadata": meta}


def _is_finished(resource: Resource, item: Json) -> bool:
    """Return whether an object is being deleted and nothing holds it any more."""
    meta = item["metadata"]
    if "deletionTimestamp" not in meta or meta.get("finalizers"):
        return False
    if resource is NAMESPACES:
        return not item.get("spec", {}).get("finalizers")
    return not meta.get("deletionGracePeriodSeconds")


def _check_preconditions(resource: Resource, item: Json, wanted: Json) -> None:
    meta = item["metadata"]
    uid, version = wanted.get("uid"), wanted.get("resourceVersion")
    if uid and uid != meta["uid"]:
        why = (
            f"the UID in the precondition ({uid}) does not match the UID in record"
            f" ({meta['uid']}). The object might have been deleted and then recreated"
        )
    elif version and version != meta["resourceVersion"]:
        why = (
            f"the ResourceVersion in the precondition ({version}) does not match the"
            f" ResourceVersion in record ({meta['resourceVersion']}). The object might have been"
            " modified"
        )
    else:
        return
    error: ApiError = conflict((resource.kind, resource.group), meta["name"], why)
    raise error
