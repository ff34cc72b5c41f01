"""Makes the tables that `kubectl get` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sd_operator.standalone.errors import Json, Value
from sd_operator.standalone.resources import Resource
from sd_operator.standalone.selectors import lookup

_STEPS = (
    (120, 1, "s", 0, ""),
    (600, 60, "m", 1, "s"),
    (10_800, 60, "m", 0, ""),
    (28_800, 3600, "h", 60, "m"),
    (172_800, 3600, "h", 0, ""),
    (691_200, 86_400, "d", 3600, "h"),
)
"""Rows of limit, unit, its name, unit of the rest, its name; all numbers are seconds.

The first row whose limit is above the duration counts. A rest whose unit is 0 is not shown.
"""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    value: Callable[[Json], Any]
    type: str = "string"
    priority: int = 0
    """kubectl shows columns above 0 only with `-o wide`."""


def human_duration(seconds: int) -> str:
    """Format seconds as kubectl does: exact for short durations, rounded down for long ones."""
    for limit, unit, name, rest_unit, rest_name in _STEPS:
        if seconds < limit:
            rest = seconds % unit // rest_unit if rest_unit else 0
            return f"{seconds // unit}{name}" + (f"{rest}{rest_name}" if rest else "")
    return f"{seconds // 86_400}d"


def age(path: str) -> Callable[[Json], str]:
    """Return a function that formats how long ago the time at a path of an object was."""

    def value(item: Json) -> str:
        text = lookup(item, path)
        if not text:
            return "<unknown>"
        seconds = (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
        return human_duration(max(0, int(seconds)))

    return value


def _at(path: str, default: Value = "") -> Callable[[Json], Any]:
    def value(item: Json) -> Value:
        content = lookup(item, path)
        return default if content is None else content

    return value


def _pod_status(item: Json) -> str:
    status = item.get("status", {})
    if "deletionTimestamp" in item["metadata"]:
        return "Terminating"
    inits = status.get("initContainerStatuses", [])
    for index, container in enumerate(inits):
        state = container.get("state", {})
        if state.get("terminated", {}).get("exitCode") == 0:
            continue
        reason = state.get("terminated", {}).get("reason") or state.get("waiting", {}).get("reason")
        if reason not in (None, "", "PodInitializing"):
            return f"Init:{reason}"
        return f"Init:{index}/{len(inits)}"
    for container in status.get("containerStatuses", []):
        state = container.get("state", {})
        reason = state.get("waiting", state.get("terminated", {})).get("reason")
        if reason:
            return str(reason)
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _pod_ready(item: Json) -> str:
    ready = sum(bool(c.get("ready")) for c in lookup(item, "status.containerStatuses") or ())
    return f"{ready}/{len(item['spec']['containers'])}"


def _job_status(item: Json) -> str:
    conditions = lookup(item, "status.conditions") or ()
    true = [c["type"] for c in conditions if c.get("status") == "True"]
    for kind in ("Complete", "Failed", "Suspended"):
        if kind in true:
            return kind
    return "Terminating" if "deletionTimestamp" in item["metadata"] else "Running"


def _job_duration(item: Json) -> str:
    start, completion = lookup(item, "status.startTime"), lookup(item, "status.completionTime")
    if not start:
        return ""
    end = datetime.fromisoformat(completion) if completion else datetime.now(UTC)
    return human_duration(int((end - datetime.fromisoformat(start)).total_seconds()))


def _event_object(item: Json) -> str:
    target = item["involvedObject"]
    return f"{target.get('kind', '').lower()}/{target.get('name', '')}"


_AGE = Column("Age", age("metadata.creationTimestamp"))
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "Namespace": (Column("Status", _at("status.phase")), _AGE),
    "Pod": (
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", lambda _: "0"),
        _AGE,
        Column("IP", _at("status.podIP", "<none>"), priority=1),
        Column("Node", _at("spec.nodeName", "<none>"), priority=1),
    ),
    "Job": (
        Column("Status", _job_status),
        Column(
            "Completions",
            lambda item: f"{_at('status.succeeded', 0)(item)}/{item['spec'].get('completions', 1)}",
        ),
        Column("Duration", _job_duration),
        _AGE,
    ),
    "Event": (
        Column(
            "Last Seen",
            lambda i: age("lastTimestamp" if i.get("lastTimestamp") else "eventTime")(i),
        ),
        Column("Type", _at("type")),
        Column("Reason", _at("reason")),
        Column("Object", _event_object),
        Column("Message", _at("message")),
    ),
    "PersistentVolumeClaim": (
        Column("Status", _at("status.phase")),
        Column("Volume", _at("spec.volumeName")),
        Column("Capacity", _at("status.capacity.storage")),
        _AGE,
    ),
    "Secret": (
        Column("Type", _at("type")),
        Column("Data", lambda item: len(item.get("data", {})), "integer"),
        _AGE,
    ),
    "Lease": (Column("Holder", _at("spec.holderIdentity")), _AGE),
    "CustomResourceDefinition": (Column("Created At", _at("metadata.creationTimestamp"), "date"),),
}


def columns(resource: Resource) -> list[Column]:
    """Return the columns of a resource's table; the name comes first except for Events."""
    name = Column("Name", _at("metadata.name"))
    if resource.kind == "Event":
        return [*_COLUMNS["Event"], replace(name, priority=1)]
    if not resource.custom:
        return [name, *_COLUMNS.get(resource.kind, (_AGE,))]
    custom = [
        Column(
            column["name"],
            (age if column["type"] == "date" else _at)(column["jsonPath"].lstrip(".")),
            column["type"],
            column.get("priority", 0),
        )
        for column in resource.definition.get("additionalPrinterColumns", ())
    ]
    return [name, *(custom or [_AGE])]


def table(
    resource: Resource,
    items: Sequence[Json],
    meta: Json,
    include: str = "Metadata",
    with_columns: bool = True,
) -> Json:
    """Return objects as a meta.k8s.io/v1 Table; `include` is a key of INCLUDED."""
    cols = columns(resource)
    definitions = [
        {
            "name": column.name,
            "type": column.type,
            "format": "name" if column.name == "Name" else "",
            "description": "",
            "priority": column.priority,
        }
        for column in cols
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": definitions if with_columns else None,
        "rows": [
            {"cells": [column.value(item) for column in cols], "object": INCLUDED[include](item)}
            for item in items
        ],
    }


def partial(item: Json) -> Json:
    """Return a PartialObjectMetadata with an object's metadata."""
    kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return kind | {"metadata": item["metadata"]}


INCLUDED: dict[str, Callable[[Json], Json | None]] = {
    "": partial,
    "Metadata": partial,
    "Object": lambda item: item,
    "None": lambda _: None,
}
"""The part of an object that a row has, by the value of the query's includeObject."""
