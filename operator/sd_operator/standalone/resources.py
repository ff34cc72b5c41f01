"""The resources that the API server serves: built-in kinds, and kinds that CRDs define."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

from kubernetes.aio.client import models

from sd_api.crd import structural
from sd_operator.standalone.errors import Json, Value
from sd_operator.standalone.schema import PRESERVE, Rules

QUANTITIES = frozenset({"limits", "requests", "capacity", "allocatable", "sizeLimit", "divisor"})


@dataclass(frozen=True)
class Resource:
    """A kind of object, and how it is served."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    model: str | None = None
    """The client library's class for a built-in kind, from which the schema is made."""
    definition: Json = field(default_factory=dict, compare=False, hash=False)
    """The entry of spec.versions in the CRD; empty for a built-in kind."""

    @property
    def id(self) -> tuple[str, str]:
        """Plural and group: the name in errors, and the key in the storage."""
        return self.plural, self.group

    @property
    def api_version(self) -> str:
        """The apiVersion of the kind's objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def custom(self) -> bool:
        """Whether a CRD defines the kind."""
        return bool(self.definition)

    @property
    def counts_generations(self) -> bool:
        """Whether metadata.generation counts the changes of the spec."""
        return self.custom or self.kind in {"Job", "Pod", "CustomResourceDefinition"}

    @property
    def allows_unconditional_update(self) -> bool:
        """Whether a PUT may leave out the resourceVersion."""
        return not self.custom and self.kind not in {"Lease", "CustomResourceDefinition"}

    @property
    def schema(self) -> Json:
        """The structural schema of the kind's objects."""
        if self.custom:
            schema: Json = self.definition["schema"]["openAPIV3Schema"]
            return schema
        return _builtin_schema(self.model) if self.model else {"type": "object", PRESERVE: True}

    @property
    def rules(self) -> Rules:
        """The CEL rules of the kind's objects."""
        return _rules(self)


@cache
def _rules(resource: Resource) -> Rules:
    return Rules(resource.schema.get("x-kubernetes-validations", ()))


@cache
def _builtin_schema(model: str) -> Json:
    schema = structural(_without_bytes(getattr(models, model).model_json_schema(by_alias=True)))
    _relax(schema)
    return schema


def _without_bytes(node: Value) -> Value:
    """Return the schema without binary alternatives: base64 is text on the wire."""
    if isinstance(node, dict):
        node = {key: _without_bytes(value) for key, value in node.items()}
        if "anyOf" in node:
            node["anyOf"] = [part for part in node["anyOf"] if part.get("format") != "binary"]
        return node
    return [_without_bytes(part) for part in node] if isinstance(node, list) else node


def _relax(schema: Json) -> None:
    """Add what the client library's types lack: quantities, and objects of any shape."""
    if "description" in schema:
        schema["description"] = schema["description"].partition("\n\nAttributes:")[0]
    if schema.get("type") == "object" and not schema.keys() & {
        "properties",
        "additionalProperties",
    }:
        schema[PRESERVE] = True
    for name, child in schema.get("properties", {}).items():
        target = child.get("additionalProperties", child)
        if name in QUANTITIES and target.get("type") == "string":
            del target["type"]
            target["x-kubernetes-int-or-string"] = True
    parts = [*schema.get("properties", {}).values(), schema.get("additionalProperties")]
    for part in [*parts, schema.get("items")]:
        if part is not None:
            _relax(part)


def _core(plural: str, kind: str, short: str = "", **fields: Value) -> Resource:
    return Resource("", "v1", plural, kind, short_names=(short,) if short else (), **fields)


NAMESPACES = _core(
    "namespaces",
    "Namespace",
    "ns",
    namespaced=False,
    subresources=("status", "finalize"),
    model="V1Namespace",
)
PODS = _core(
    "pods",
    "Pod",
    "po",
    categories=("all",),
    subresources=("status", "log", "binding"),
    model="V1Pod",
)
JOBS = Resource(
    "batch", "v1", "jobs", "Job", categories=("all",), subresources=("status",), model="V1Job"
)
DEFINITIONS = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    short_names=("crd", "crds"),
    categories=("api-extensions",),
    subresources=("status",),
)
CLAIMS = _core(
    "persistentvolumeclaims",
    "PersistentVolumeClaim",
    "pvc",
    subresources=("status",),
    model="V1PersistentVolumeClaim",
)
BUILTIN = (
    NAMESPACES,
    PODS,
    _core("nodes", "Node", "no", namespaced=False, subresources=("status",), model="V1Node"),
    _core("secrets", "Secret", model="V1Secret"),
    CLAIMS,
    _core("events", "Event", "ev", model="CoreV1Event"),
    JOBS,
    Resource("coordination.k8s.io", "v1", "leases", "Lease", model="V1Lease"),
    DEFINITIONS,
)


def from_definition(definition: Json) -> list[Resource]:
    """Return the resources that a CustomResourceDefinition serves."""
    spec = definition["spec"]
    names = spec["names"]
    template = Resource(
        spec["group"],
        "",
        names["plural"],
        names["kind"],
        spec["scope"] == "Namespaced",
        tuple(names.get("shortNames", ())),
        tuple(names.get("categories", ())),
    )
    return [
        replace(
            template,
            version=version["name"],
            definition=version,
            subresources=tuple(version.get("subresources", ())),
        )
        for version in spec["versions"]
        if version.get("served")
    ]
