"""Looks at a cluster for `doctor`; what may not be read stays None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sd_api import defaults, names
from sd_operator.cli.doctor import RIGHTS, ClusterView, SpaceView, environment, wanted_keys
from sd_operator.cli.kubectl import ForbiddenError, Json, Kubectl, KubectlError, NotFoundError

T = TypeVar("T")

# What the chart makes beside the operator has its name, too.
OPERATORS = f"{names.LABEL_NAME}={names.FIELD_MANAGER},{names.LABEL_COMPONENT} notin (gateway,test)"
CRD = f"{names.PLURAL}.{names.GROUP}"


def look(kubectl: Kubectl, namespaces: Sequence[str]) -> ClusterView:
    """What `doctor` judges; without namespaces, those that have models."""
    crd = _seen(lambda: _crd(kubectl))
    operators = _seen(lambda: kubectl.list("pods", everywhere=True, labels=OPERATORS))
    nodes = _seen(lambda: kubectl.list("nodes"))
    models = [] if crd == {} else kubectl.list(CRD, everywhere=not namespaces)
    by_space: dict[str, list[Json]] = {name: [] for name in namespaces}
    for model in models:
        by_space.setdefault(model["metadata"]["namespace"], []).append(model)
    account = _account(operators or [])
    claim = environment(operators or []).get("SD_OPERATOR_CLAIM_NAME") or defaults.CLAIM_NAME
    spaces = [_space(kubectl, name, found, claim, account) for name, found in by_space.items()]
    return ClusterView(crd, operators, nodes, tuple(spaces))


def _space(
    kubectl: Kubectl, name: str, models: Sequence[Json], claim: str, account: str | None
) -> SpaceView:
    claims = {model["spec"].get("storage", {}).get("claimName") or claim for model in models}
    return SpaceView(
        name,
        models,
        claims=_seen(lambda: _claims(kubectl, name, claims or {claim})),
        keys=_seen(lambda: _keys(kubectl, name, models)),
        denied=_seen(lambda: _denied(kubectl, name, account)) if account else None,
        policies=_seen(lambda: kubectl.list("networkpolicies", name)),
    )


def _claims(kubectl: Kubectl, namespace: str, claims: set[str]) -> dict[str, Json | None]:
    found: dict[str, Json | None] = {}
    for claim in sorted(claims):
        try:
            found[claim] = kubectl.get("persistentvolumeclaim", claim, namespace)
        except NotFoundError:
            found[claim] = None
    return found


def _keys(
    kubectl: Kubectl, namespace: str, models: Sequence[Json]
) -> dict[tuple[str, str], set[str] | None]:
    found: dict[tuple[str, str], set[str] | None] = {}
    for kind, name in wanted_keys(models):
        try:
            found[kind, name] = kubectl.keys(kind, name, namespace)
        except NotFoundError:
            found[kind, name] = None
    return found


def _denied(kubectl: Kubectl, namespace: str, account: str) -> list[str]:
    return [
        f"{verb} {resource}"
        for verb, resource in RIGHTS
        if not kubectl.may(verb, resource, namespace, account)
    ]


def _account(operators: Sequence[Json]) -> str | None:
    """The operator's service account, as `auth can-i --as` names it."""
    for pod in operators:
        name: Any = pod["spec"].get("serviceAccountName")
        if name:
            return f"{pod['metadata']['namespace']}:{name}"
    return None


def _crd(kubectl: Kubectl) -> Json:
    try:
        return kubectl.get("customresourcedefinition", CRD)
    except NotFoundError:
        return {}


def _seen(look: Callable[[], T]) -> T | None:
    """What is there; None where it may not be read, or the server has no such kind."""
    try:
        return look()
    except (ForbiddenError, NotFoundError):
        return None
    except KubectlError as error:
        if "could not find the requested resource" in str(error):
            return None
        raise
