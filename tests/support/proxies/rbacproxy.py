"""A reverse proxy that enforces RBAC rules for an API server that does not.

For example:

    server, token, ca = credentials(kubeconfig)
    with RbacProxy(server, token, ca, tmp_path / "proxy.kubeconfig") as proxy:
        operated.start(KUBECONFIG=str(proxy.kubeconfig))
        ...
        assert not proxy.missing  # the rights that a request needed and no rule gives
        assert not proxy.unused  # the rights that a rule gives and no request needed
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from typing_extensions import override

from tests.support.kube.rights import (
    BLOCK_OWNER,
    CLUSTER_RIGHTS,
    GET_NAMESPACE,
    RULES,
    Right,
    needed,
    rights,
)
from tests.support.proxies.apiproxy import ApiProxy, failure


@dataclass
class RbacProxy(ApiProxy):
    """Forwards the requests that the rules allow, and rejects the others with 403."""

    allowed: frozenset[Right] = field(default_factory=lambda: rights(RULES))
    without_role: set[str] = field(default_factory=set)
    """Namespaces whose Roles are deleted, so that only the ClusterRole gives rights."""
    used: set[Right] = field(default_factory=set)
    missing: set[Right] = field(default_factory=set)
    everywhere: set[Right] = field(default_factory=set)
    """The rights that a request across all namespaces needed."""
    hold_pods: bool = False
    """Whether to hold back Pod events, which can be late on a real cluster."""

    @property
    def unused(self) -> set[Right]:
        """The rights that no request needed."""
        return set(self.allowed - self.used)

    @override
    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Forward a request that the rules allow; note the rights that it needs."""
        found = needed(request.method, request.path_qs)
        if found is not None:
            right, namespace = found
            if not namespace:
                self.everywhere.add(right)
            allowed = CLUSTER_RIGHTS if namespace in self.without_role else self.allowed
            every = [right, *([BLOCK_OWNER] if _blocks_its_owner(right, body) else [])]
            for one in every:
                if one not in allowed and one != GET_NAMESPACE:
                    self.missing.add(one)
                    return _forbidden(one, namespace)
            self.used.update(every)
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
