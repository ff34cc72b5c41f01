"""A reverse proxy that does as RBAC does, for an API server that does not: it knows some rules.

What they do not allow it refuses and notes; what they allow and nobody asks for it can tell.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from aiohttp import web
from typing_extensions import override

from sd_api import names
from tests.support.kube.apiproxy import ApiProxy, failure
from tests.support.paths import ROOT

_CHART = ROOT / "charts" / "sd-operator" / "files"
RULES: list[dict[str, list[str]]] = [
    rule
    for name in ("rules.yaml", "leader-rules.yaml")
    for rule in yaml.safe_load((_CHART / name).read_text())
]
"""All that the operator may do: what the chart's Roles say."""

_OBJECT_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_LIST_VERBS = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


@dataclass(frozen=True, order=True)
class Right:
    """To do one thing with one kind."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


BLOCK_OWNER = Right(names.GROUP, f"{names.PLURAL}/finalizers", "update")
"""What the admission plugin OwnerReferencesPermissionEnforcement asks for."""


def rights(rules: Iterable[Mapping[str, Iterable[str]]]) -> frozenset[Right]:
    """The rights that rules give."""
    return frozenset(
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def asked(method: str, target: str) -> tuple[Right, str] | None:
    """The right that a request needs, and its namespace; None where everybody may ask."""
    parts = urlsplit(target)
    words = parts.path.strip("/").split("/")
    depth = {"api": 2, "apis": 3}.get(words[0], 0)
    if not depth or len(words) <= depth:
        return None  # discovery, version, health
    group, rest, namespace = (words[1] if depth == 3 else ""), words[depth:], ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    watches = parse_qs(parts.query).get("watch", ["0"])[0] in ("1", "true")
    verb = "watch" if watches else (_OBJECT_VERBS if len(rest) > 1 else _LIST_VERBS)[method]
    return Right(group, resource, verb), namespace


@dataclass
class RbacProxy(ApiProxy):
    """Stands before an API server while its context lasts.

    hold_pods: what happens to Pods comes late from now on, as it may on a real cluster.
    """

    allowed: frozenset[Right] = field(default_factory=lambda: rights(RULES))
    used: set[Right] = field(default_factory=set)
    missing: set[Right] = field(default_factory=set)
    everywhere: set[Right] = field(default_factory=set)
    """Rights that were needed in all namespaces at once."""
    hold_pods: bool = False

    @property
    def unused(self) -> set[Right]:
        """What is allowed in vain."""
        return set(self.allowed - self.used)

    @override
    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Forward what is allowed."""
        found = asked(request.method, request.path_qs)
        if found is not None:
            right, namespace = found
            if not namespace:
                self.everywhere.add(right)
            needed = [right, *([BLOCK_OWNER] if _blocks_its_owner(right, body) else [])]
            for one in needed:
                if one not in self.allowed:
                    self.missing.add(one)
                    return _forbidden(one, namespace)
            self.used.update(needed)
        if found and found[0] == Right("", "pods", "watch"):
            return await self.forward(request, body, self._until_let)
        return await self.forward(request, body)

    async def _until_let(self) -> None:
        while self.hold_pods:  # noqa: ASYNC110 - another thread ends it
            await asyncio.sleep(0.05)


def _blocks_its_owner(right: Right, body: bytes) -> bool:
    if right != Right("batch", "jobs", "create"):
        return False
    owners: list[dict[str, Any]] = json.loads(body)["metadata"].get("ownerReferences", [])
    return any(owner.get("blockOwnerDeletion") for owner in owners)


def _forbidden(right: Right, namespace: str) -> web.Response:
    what = f'resource "{right.resource}" in API group "{right.group}"'
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    return failure(403, "Forbidden", f'User "operator" cannot {right.verb} {what} {where}')
