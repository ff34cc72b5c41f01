"""The right that an API request needs, and the rights that the chart's rules grant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import yaml

from sd_api import names
from tests.support.paths import ROOT

_CHART = ROOT / "charts" / "sd-operator" / "files"
RULES: list[dict[str, list[str]]] = [
    rule
    for name in ("rules.yaml", "leader-rules.yaml")
    for rule in yaml.safe_load((_CHART / name).read_text())
]
"""The rules of the chart's Roles for the operator."""

_OBJECT_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_LIST_VERBS = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


BLOCK_OWNER = Right(names.GROUP, f"{names.PLURAL}/finalizers", "update")
"""The admission plugin OwnerReferencesPermissionEnforcement requires it for blockOwnerDeletion."""


GET_NAMESPACE = Right("", "namespaces", "get")
"""The chart's ClusterRole gives this right for the namespaces that its values list."""
CLUSTER_RIGHTS = frozenset(
    Right(names.GROUP, names.PLURAL, verb) for verb in ("get", "list", "watch", "patch")
)
"""The rights that this ClusterRole gives on the models of all namespaces."""


def rights(rules: Iterable[Mapping[str, Iterable[str]]]) -> frozenset[Right]:
    """Expand RBAC rules to single rights."""
    return frozenset(
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def needed(method: str, target: str) -> tuple[Right, str] | None:
    """Return the right that a request needs and its namespace; None if it needs no right."""
    parts = urlsplit(target)
    words = parts.path.strip("/").split("/")
    depth = {"api": 2, "apis": 3}.get(words[0], 0)
    if not depth or len(words) <= depth:
        return None  # discovery, version and health need no right
    group, rest, namespace = (words[1] if depth == 3 else ""), words[depth:], ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    watches = parse_qs(parts.query).get("watch", ["0"])[0] in ("1", "true")
    verb = "watch" if watches else (_OBJECT_VERBS if len(rest) > 1 else _LIST_VERBS)[method]
    return Right(group, resource, verb), namespace
