"""What keeps an installation from working: findings about a cluster. Pure; `gather` looks.

A check that could not look, for want of rights, says so, and is no failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sd_api import defaults, names
from sd_api.crd import custom_resource_definition

Json = Mapping[str, Any]

RIGHTS = (
    ("list", f"{names.PLURAL}.{names.GROUP}"),
    ("patch", f"{names.PLURAL}.{names.GROUP}"),
    ("patch", f"{names.PLURAL}.{names.GROUP}/status"),
    ("create", "jobs.batch"),
    ("delete", "jobs.batch"),
    ("watch", "pods"),
    ("get", "pods/log"),
    ("watch", "persistentvolumeclaims"),
    ("create", "events"),
)
"""What the operator cannot do without, in each namespace that it serves."""


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One check's outcome, and what to do about it."""

    level: Level
    subject: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class SpaceView:
    """One namespace with models. None where it could not be looked at.

    claims: by name, None where there is none. keys: of Secrets and ConfigMaps, likewise. denied:
    the operator's rights that are missing.
    """

    name: str
    models: Sequence[Json]
    claims: Mapping[str, Json | None] | None = None
    keys: Mapping[tuple[str, str], set[str] | None] | None = None
    denied: Sequence[str] | None = None
    policies: Sequence[Json] | None = None


@dataclass(frozen=True)
class ClusterView:
    """What the checks judge; None where it could not be looked at. crd: {} where there is none."""

    crd: Json | None
    operators: Sequence[Json] | None
    nodes: Sequence[Json] | None
    spaces: Sequence[SpaceView] = field(default_factory=tuple)


def examine(cluster: ClusterView) -> list[Finding]:
    """All findings, in the order in which things must work."""
    findings = [check_crd(cluster.crd), check_operators(cluster.operators)]
    if cluster.nodes is None:
        findings.append(_unseen("GPU", "nodes"))
    else:
        findings.append(check_gpus(cluster.nodes, gpu_resource(cluster.operators or ())))
    for space in cluster.spaces:
        findings += [check_rights(space), *check_claims(space)]
        findings += [*check_keys(space), check_egress(space)]
    return findings


def check_crd(found: Json | None) -> Finding:
    """The kind is there, and knows every field that this version has."""
    subject = "CRD"
    if found is None:
        return _unseen(subject, "customresourcedefinitions")
    if not found:
        return Finding(
            Level.FAILED,
            subject,
            "the kind is not installed",
            "Install the chart, or apply the CRD.",
        )
    served = [one for one in found["spec"]["versions"] if one["name"] == names.VERSION]
    if not served or not served[0].get("served"):
        return Finding(
            Level.FAILED,
            subject,
            f"{names.VERSION} is not served",
            "Upgrade the CRD with the chart.",
        )
    wanted = _fields(custom_resource_definition()["spec"]["versions"][0]["schema"])
    has = _fields(served[0]["schema"])
    if missing := sorted(wanted - has):
        listed = ", ".join(missing[:5]) + (", …" if missing[5:] else "")
        return Finding(
            Level.FAILED, subject, f"it lacks {listed}", "Upgrade the CRD: it is older than this."
        )
    if has - wanted:
        return Finding(
            Level.WARNING, subject, "it has fields that this version does not know", "Upgrade this."
        )
    return Finding(Level.OK, subject, f"{names.API_VERSION}, {len(has)} fields")


def check_operators(pods: Sequence[Json] | None) -> Finding:
    """An operator is there, and ready."""
    subject = "operator"
    if pods is None:
        return _unseen(subject, "pods")
    if not pods:
        label = f"{names.LABEL_NAME}={names.FIELD_MANAGER}"
        return Finding(
            Level.WARNING, subject, f"no Pod has the label {label}", "Is it installed elsewhere?"
        )
    ready = sum(_is_ready(pod) for pod in pods)
    if not ready:
        return Finding(
            Level.FAILED,
            subject,
            f"none of {len(pods)} Pods is ready",
            "kubectl describe the Pod; its log says why it does not start.",
        )
    level = Level.OK if ready == len(pods) else Level.WARNING
    return Finding(level, subject, f"{ready} of {len(pods)} Pods are ready")


def check_gpus(nodes: Sequence[Json], resource: str) -> Finding:
    """Nodes have the resource that loader Jobs ask for."""
    amounts = [
        int(node.get("status", {}).get("allocatable", {}).get(resource, "0")) for node in nodes
    ]
    having = sum(amount > 0 for amount in amounts)
    if not having:
        return Finding(
            Level.WARNING,
            "GPU",
            f"no node has {resource}",
            "Install the device plugin, or set the GPU count to 0: loads need no GPU.",
        )
    return Finding(Level.OK, "GPU", f"{sum(amounts)} {resource} on {having} of {len(nodes)} nodes")


def check_rights(space: SpaceView) -> Finding:
    """The operator may do what it must."""
    subject = f"{space.name}: RBAC"
    if space.denied is None:
        return _unseen(subject, "the operator's rights (that needs the right to impersonate it)")
    if space.denied:
        return Finding(
            Level.FAILED,
            subject,
            f"the operator may not {', '.join(space.denied)}",
            "Name the namespace in models.namespaces of the chart's values.",
        )
    return Finding(Level.OK, subject, "the operator has its rights")


def check_claims(space: SpaceView) -> Iterable[Finding]:
    """The volumes are there, bound, and can be shared."""
    if space.claims is None:
        yield _unseen(f"{space.name}: volume", "persistentvolumeclaims")
        return
    for name, claim in space.claims.items():
        subject = f"{space.name}: volume {name}"
        if claim is None:
            yield Finding(
                Level.FAILED, subject, "there is no such claim", "Create the PersistentVolumeClaim."
            )
        elif claim.get("status", {}).get("phase") == "Lost":
            yield Finding(
                Level.FAILED, subject, "its volume is lost", "Restore the volume, or a new claim."
            )
        elif claim.get("status", {}).get("phase") != "Bound":
            yield Finding(
                Level.WARNING, subject, "it is not bound yet", "kubectl describe pvc says why."
            )
        elif "ReadWriteMany" not in claim["spec"].get("accessModes", ()):
            yield Finding(
                Level.WARNING,
                subject,
                "it is not ReadWriteMany",
                "Loads and readers must then run on the same node.",
            )
        else:
            yield Finding(Level.OK, subject, "bound, ReadWriteMany")


def check_keys(space: SpaceView) -> Iterable[Finding]:
    """Secrets that models name are there, with the keys that are read."""
    if space.keys is None:
        yield _unseen(f"{space.name}: Secrets", "secrets")
        return
    for (kind, name), wanted in sorted(wanted_keys(space.models).items()):
        subject = f"{space.name}: {kind} {name}"
        has = space.keys.get((kind, name))
        if has is None:
            yield Finding(
                Level.FAILED, subject, "there is none", f"Create it, with {_list(wanted)}."
            )
        elif missing := wanted - has:
            yield Finding(Level.FAILED, subject, f"it lacks {_list(missing)}", "Add the key.")
        else:
            yield Finding(Level.OK, subject, f"has {_list(wanted)}")


def wanted_keys(models: Sequence[Json]) -> dict[tuple[str, str], set[str]]:
    """The keys that models ask for, by kind and name of what holds them."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for model in models:
        spec = model.get("spec", {})
        if reference := spec.get("credentialsSecretRef"):
            wanted.setdefault(("Secret", reference["name"]), set()).add("token")
        if reference := spec.get("webhookSecretRef"):
            wanted.setdefault(("Secret", reference["name"]), set()).add(reference["key"])
    return wanted


def check_egress(space: SpaceView) -> Finding:
    """No NetworkPolicy keeps the loader from names and from https."""
    subject = f"{space.name}: egress"
    if space.policies is None:
        return _unseen(subject, "networkpolicies")
    selecting = [policy for policy in space.policies if _holds_loader(policy)]
    if not selecting:
        return Finding(Level.OK, subject, "no NetworkPolicy holds the loader")
    listed = ", ".join(policy["metadata"]["name"] for policy in selecting)
    rules = [rule for policy in selecting for rule in policy["spec"].get("egress") or ()]
    closed = [
        name
        for name, port in (("DNS (53)", 53), ("https (443)", 443))
        if not any(_lets_through(rule, port) for rule in rules)
    ]
    if closed:
        return Finding(
            Level.FAILED,
            subject,
            f"{listed} lets the loader reach no {' and no '.join(closed)}",
            "Allow it; a proxy's port counts as https if the proxy is set.",
        )
    return Finding(Level.OK, subject, f"{listed} lets DNS and https through")


def gpu_resource(operators: Sequence[Json]) -> str:
    """The resource that the operator's settings name."""
    return environment(operators).get("SD_OPERATOR_GPU_RESOURCE") or defaults.GPU_RESOURCE


def environment(operators: Sequence[Json]) -> dict[str, str]:
    """The plain environment variables of the operator's containers."""
    return {
        entry["name"]: entry.get("value", "")
        for pod in operators
        for container in pod["spec"]["containers"]
        for entry in container.get("env") or ()
    }


def _unseen(subject: str, what: str) -> Finding:
    return Finding(Level.UNKNOWN, subject, f"you may not read {what}")


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _fields(schema: Json, path: str = "") -> set[str]:
    """The paths of all fields of a schema."""
    schema = schema.get("openAPIV3Schema", schema)
    found: set[str] = set()
    for name, field_schema in (schema.get("properties") or {}).items():
        here = f"{path}.{name}" if path else name
        found |= {here} | _fields(field_schema, here)
    items = schema.get("items")
    return found | (_fields(items, f"{path}[]") if isinstance(items, Mapping) else set())


def _holds_loader(policy: Json) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
    if "Egress" not in types:
        return False
    labels = {
        names.LABEL_NAME: names.LOADER_NAME,
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_ROLE: names.ROLE_LOAD,
    }
    selector = spec.get("podSelector") or {}
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_matches(labels, one) for one in selector.get("matchExpressions") or ())


def _matches(labels: Mapping[str, str], expression: Json) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }.get(expression["operator"], True)


def _lets_through(rule: Json, port: int) -> bool:
    ports = rule.get("ports")
    if not ports:
        return True
    return any(_is_port(one, port) for one in ports)


def _is_port(allowed: Json, port: int) -> bool:
    first = allowed.get("port")
    if not isinstance(first, int):
        # A name is a Pod's own word for a port; which one cannot be told from here.
        return True
    return first <= port <= int(allowed.get("endPort", first))


def _list(keys: Iterable[str]) -> str:
    return "key " + ", ".join(sorted(keys))
