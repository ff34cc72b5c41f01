"""Reads the cluster state that `doctor` checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sd_api import defaults, names
from sd_operator.cli.doctor.findings import (
    CRD,
    RIGHTS,
    ClusterView,
    NamespaceView,
    environment,
)
from sd_operator.cli.doctor.installation import listed_namespaces
from sd_operator.cli.doctor.namespace import wanted_keys
from sd_operator.cli.kubectl import (
    AccessDeniedError,
    Json,
    Kubectl,
    KubectlError,
    ObjectNotFoundError,
)
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.warning_event import WarningEvent, explains_a_start

T = TypeVar("T")

# The chart gives the gateway's and the test's Pods the same name label as the operator's.
OPERATORS = f"{names.LABEL_NAME}={names.FIELD_MANAGER},{names.LABEL_COMPONENT} notin (gateway,test)"


def view_cluster(kubectl: Kubectl, namespaces: Sequence[str]) -> ClusterView:
    """Read the state that `doctor` checks.

    If `namespaces` is empty, read all namespaces that have models or that an operator is set to
    serve.
    """
    crd = _readable(lambda: _existing(kubectl, "customresourcedefinition", CRD))
    operators = _readable(lambda: kubectl.list("pods", everywhere=True, labels=OPERATORS))
    nodes = _readable(lambda: kubectl.list("nodes"))
    models = [] if crd == {} else kubectl.list(CRD, everywhere=not namespaces)
    listed = {
        name: _readable(partial(_existing, kubectl, "namespace", name))
        for name in listed_namespaces(operators or [])
    }
    # Leave out namespaces that do not exist: there is nothing to read in them.
    served = [name for name, body in listed.items() if body != {}]
    by_namespace: dict[str, list[Json]] = {name: [] for name in namespaces or served}
    for model in models:
        by_namespace.setdefault(model["metadata"]["namespace"], []).append(model)
    account = _account(operators or [])
    claim = environment(operators or []).get("SD_OPERATOR_CLAIM_NAME") or defaults.CLAIM_NAME
    views = [
        _view_namespace(kubectl, name, bodies, claim, account, is_listed=name in listed)
        for name, bodies in by_namespace.items()
    ]
    return ClusterView(crd, operators, nodes, tuple(views), listed)


def _view_namespace(
    kubectl: Kubectl,
    name: str,
    models: Sequence[Json],
    claim: str,
    account: str | None,
    *,
    is_listed: bool,
) -> NamespaceView:
    wanted = {model["spec"].get("storage", {}).get("claimName") or claim for model in models}
    claims = _readable(lambda: _claims(kubectl, name, wanted or {claim}))
    return NamespaceView(
        name,
        models,
        claims=claims,
        keys=_readable(lambda: _keys(kubectl, name, models)),
        denied=_readable(lambda: _denied(kubectl, name, account)) if account else None,
        policies=_readable(lambda: kubectl.list("networkpolicies", name)),
        warnings=_readable(lambda: _warnings(kubectl, name, claims or {})) or {},
        is_listed=is_listed,
    )


def _claims(kubectl: Kubectl, namespace: str, claims: set[str]) -> dict[str, Json | None]:
    bodies: dict[str, Json | None] = {}
    for claim in sorted(claims):
        try:
            bodies[claim] = kubectl.get("persistentvolumeclaim", claim, namespace)
        except ObjectNotFoundError:
            bodies[claim] = None
    return bodies


def _warnings(
    kubectl: Kubectl, namespace: str, claims: Mapping[str, Json | None]
) -> dict[str, WarningEvent]:
    """Return the newest Warning about the binding of each PVC that has no volume."""
    newest: dict[str, WarningEvent] = {}
    for name, body in claims.items():
        if body is None or ClaimView.from_body(body).has_volume:
            continue
        about = f"involvedObject.uid={body['metadata']['uid']},type=Warning"
        events = filter(explains_a_start, kubectl.list("events", namespace, fields=about))
        for event in sorted(map(WarningEvent.from_body, events), key=lambda event: event.at):
            newest[name] = event
    return newest


def _keys(
    kubectl: Kubectl, namespace: str, models: Sequence[Json]
) -> dict[tuple[str, str], set[str] | None]:
    existing: dict[tuple[str, str], set[str] | None] = {}
    for kind, name in wanted_keys(models):
        try:
            existing[kind, name] = kubectl.keys(kind, name, namespace)
        except ObjectNotFoundError:
            existing[kind, name] = None
    return existing


def _denied(kubectl: Kubectl, namespace: str, account: str) -> list[str]:
    return [
        f"{verb} {resource}"
        for verb, resource in RIGHTS
        if not kubectl.may(verb, resource, namespace, account)
    ]


def _account(operators: Sequence[Json]) -> str | None:
    """Return the operator's ServiceAccount as "namespace:name", or None if no Pod names one."""
    for pod in operators:
        name: Any = pod["spec"].get("serviceAccountName")
        if name:
            return f"{pod['metadata']['namespace']}:{name}"
    return None


def _existing(kubectl: Kubectl, kind: str, name: str) -> Json:
    """Return an object; an empty mapping if it does not exist."""
    try:
        return kubectl.get(kind, name)
    except ObjectNotFoundError:
        return {}


def _readable(read: Callable[[], T]) -> T | None:
    """Return what `read` returns; None if the user may not read it, or if it does not exist."""
    try:
        return read()
    except (AccessDeniedError, ObjectNotFoundError):
        return None
    except KubectlError as error:
        if "could not find the requested resource" in str(error):
            return None
        raise
