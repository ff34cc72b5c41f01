"""The findings that checks yield, and the views of the cluster that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sd_api import names
from sd_operator.resources.warning_event import WarningEvent

Json = Mapping[str, Any]

CRD = f"{names.PLURAL}.{names.GROUP}"
RIGHTS = (
    ("list", CRD),
    ("patch", CRD),
    ("patch", f"{CRD}/status"),
    ("create", "jobs.batch"),
    ("delete", "jobs.batch"),
    ("watch", "pods"),
    ("get", "pods/log"),
    ("watch", "persistentvolumeclaims"),
    ("create", "events"),
)
"""Permissions that `doctor` checks, as verb and resource. The operator needs them in every
namespace that it serves."""


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    level: Level
    subject: str
    """The checked object, with its namespace if it has one."""
    message: str
    remedy: str = ""
    """What the user should do; empty if there is nothing to do."""


@dataclass(frozen=True)
class NamespaceView:
    """The state of one namespace that is checked. A field is None if it could not be read."""

    name: str
    models: Sequence[Json]
    claims: Mapping[str, Json | None] | None = None
    """The PVCs that the models use, by name; the value is None if the PVC does not exist.

    If the namespace has no models, this is only the default PVC.
    """
    keys: Mapping[tuple[str, str], set[str] | None] | None = None
    """The keys of each Secret, by kind and name; the value is None if the Secret does not exist."""
    denied: Sequence[str] | None = None
    """The entries of RIGHTS that the operator lacks, each as "verb resource"."""
    policies: Sequence[Json] | None = None
    """All NetworkPolicies."""
    warnings: Mapping[str, WarningEvent] = field(default_factory=dict)
    """The newest Warning about the binding of each PVC that has no volume, by the PVC's name."""
    is_listed: bool = False
    """Whether an operator's settings list the namespace."""


@dataclass(frozen=True)
class ClusterView:
    """The input of the checks. A field is None if it could not be read."""

    crd: Json | None
    """The CRD; an empty mapping if it is not installed."""
    operators: Sequence[Json] | None
    """The operator's Pods in all namespaces."""
    nodes: Sequence[Json] | None
    namespaces: Sequence[NamespaceView] = field(default_factory=tuple)
    listed: Mapping[str, Json | None] = field(default_factory=dict)
    """The namespaces that the operators are set to serve, by name.

    The value is an empty mapping if the namespace does not exist.
    """


def environment(operators: Sequence[Json]) -> dict[str, str]:
    """Return the environment variables of the Pods' containers; empty values for valueFrom."""
    return {
        entry["name"]: entry.get("value", "")
        for pod in operators
        for container in pod["spec"]["containers"]
        for entry in container.get("env") or ()
    }


def unreadable(subject: str, resource: str) -> Finding:
    """Return the finding of a check whose objects could not be read."""
    message = f"cannot read {resource}: you lack permission, or the server does not have them"
    return Finding(Level.UNKNOWN, subject, message)
