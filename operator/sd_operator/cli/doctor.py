"""Findings about an installation: what keeps models from loading, and what to do about it.

Pure: `gather` reads the cluster. A check whose objects could not be read yields a finding of level
UNKNOWN, which is not a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sd_api import defaults, names
from sd_api.crd import custom_resource_definition
from sd_api.reasons import OF_THE_CLUSTER
from sd_api.status import ConditionType

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
"""Permissions, as verb and resource, that the operator needs in every namespace it serves."""


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
    """The state of one namespace with models. A field is None if it could not be read."""

    name: str
    models: Sequence[Json]
    claims: Mapping[str, Json | None] | None = None
    """The PVCs that the models use, by name; the value is None if the PVC does not exist."""
    keys: Mapping[tuple[str, str], set[str] | None] | None = None
    """The keys of each Secret, by kind and name; the value is None if the Secret does not exist."""
    denied: Sequence[str] | None = None
    """The entries of RIGHTS that the operator lacks, each as "verb resource"."""
    policies: Sequence[Json] | None = None
    """All NetworkPolicies."""


@dataclass(frozen=True)
class ClusterView:
    """The input of the checks. A field is None if it could not be read."""

    crd: Json | None
    """The CRD; an empty mapping if it is not installed."""
    operators: Sequence[Json] | None
    """The operator's Pods in all namespaces."""
    nodes: Sequence[Json] | None
    namespaces: Sequence[NamespaceView] = field(default_factory=tuple)


def examine(cluster: ClusterView) -> list[Finding]:
    """Run all checks; a check comes after those that it depends on."""
    findings = [check_crd(cluster.crd), check_operators(cluster.operators)]
    if cluster.nodes is None:
        findings.append(_unreadable("GPU", "nodes"))
    else:
        findings.append(check_gpus(cluster.nodes, gpu_resource(cluster.operators or ())))
    for namespace in cluster.namespaces:
        findings += [check_rights(namespace), *check_claims(namespace)]
        findings += [*check_keys(namespace), check_egress(namespace), *check_models(namespace)]
    return findings


def check_crd(crd: Json | None) -> Finding:
    """Check that the CRD is installed, served, and has exactly the fields of this version."""
    subject = "CRD"
    if crd is None:
        return _unreadable(subject, "customresourcedefinitions")
    if not crd:
        return Finding(
            Level.FAILED,
            subject,
            f"the CRD {CRD} is not installed",
            "Install the chart, or apply the CRD.",
        )
    versions = [item for item in crd["spec"]["versions"] if item["name"] == names.VERSION]
    if not versions or not versions[0].get("served"):
        return Finding(
            Level.FAILED,
            subject,
            f"the CRD does not serve version {names.VERSION}",
            "Upgrade the CRD with the chart.",
        )
    expected = _fields(custom_resource_definition()["spec"]["versions"][0]["schema"])
    installed = _fields(versions[0]["schema"])
    if missing := sorted(expected - installed):
        listed = ", ".join(missing[:5]) + (", …" if missing[5:] else "")
        return Finding(
            Level.FAILED,
            subject,
            f"the CRD lacks {listed}",
            "Upgrade the CRD with the chart: it is older than kubectl sdm.",
        )
    if installed - expected:
        return Finding(
            Level.WARNING,
            subject,
            "the CRD has fields that this version of kubectl sdm does not know",
            "Upgrade kubectl sdm: it is older than the CRD.",
        )
    return Finding(Level.OK, subject, f"{names.API_VERSION}, {len(installed)} fields")


def check_operators(pods: Sequence[Json] | None) -> Finding:
    """Check that the operator runs and that its Pods are ready."""
    subject = "operator"
    if pods is None:
        return _unreadable(subject, "pods")
    if not pods:
        label = f"{names.LABEL_NAME}={names.FIELD_MANAGER}"
        return Finding(
            Level.WARNING,
            subject,
            f"no Pod has the label {label}",
            "Install the chart, unless the operator runs outside this cluster.",
        )
    ready = sum(_is_ready(pod) for pod in pods)
    message = f"{ready} of {len(pods)} Pods are ready"
    if not ready:
        return Finding(
            Level.FAILED,
            subject,
            message,
            "Run kubectl describe and kubectl logs on the Pods to see why they do not start.",
        )
    return Finding(Level.OK if ready == len(pods) else Level.WARNING, subject, message)


def check_gpus(nodes: Sequence[Json], resource: str) -> Finding:
    """Check that a node offers the GPU resource that loader Jobs request."""
    amounts = [
        int(node.get("status", {}).get("allocatable", {}).get(resource, "0")) for node in nodes
    ]
    equipped = sum(amount > 0 for amount in amounts)
    if not equipped:
        return Finding(
            Level.WARNING,
            "GPU",
            f"no node has {resource}",
            "Install the device plugin, or set the GPU count to 0: a load does not need a GPU.",
        )
    total = sum(amounts)
    return Finding(Level.OK, "GPU", f"{total} {resource} on {equipped} of {len(nodes)} nodes")


def check_rights(namespace: NamespaceView) -> Finding:
    """Check that the operator has all RIGHTS in the namespace."""
    subject = f"{namespace.name}: RBAC"
    if namespace.denied is None:
        return Finding(
            Level.UNKNOWN,
            subject,
            "the operator's permissions are unknown: its Pods cannot be read, or you may not"
            " impersonate its ServiceAccount",
        )
    if namespace.denied:
        return Finding(
            Level.FAILED,
            subject,
            f"the operator may not {', '.join(namespace.denied)}",
            "Add the namespace to models.namespaces in the chart's values.",
        )
    return Finding(Level.OK, subject, "the operator has all permissions that it needs")


def check_claims(namespace: NamespaceView) -> Iterable[Finding]:
    """Check that the PVCs of the models exist, are bound, and can be mounted on every node."""
    if namespace.claims is None:
        yield _unreadable(f"{namespace.name}: PVC", "persistentvolumeclaims")
        return
    for name, claim in namespace.claims.items():
        subject = f"{namespace.name}: PVC {name}"
        if claim is None:
            yield Finding(
                Level.FAILED,
                subject,
                "the PersistentVolumeClaim does not exist",
                "Create the PersistentVolumeClaim.",
            )
        elif claim.get("status", {}).get("phase") == "Lost":
            yield Finding(
                Level.FAILED,
                subject,
                "the PVC has lost its volume",
                "Restore the volume, or create the PVC again.",
            )
        elif claim.get("status", {}).get("phase") != "Bound":
            yield Finding(
                Level.WARNING,
                subject,
                "the PVC is not bound",
                f"Run kubectl describe pvc {name} to see why.",
            )
        elif "ReadWriteMany" not in claim["spec"].get("accessModes", ()):
            yield Finding(
                Level.WARNING,
                subject,
                "the PVC is not ReadWriteMany",
                "Run loader Jobs and the Pods that use the models on the same node.",
            )
        else:
            yield Finding(Level.OK, subject, "bound, ReadWriteMany")


def check_keys(namespace: NamespaceView) -> Iterable[Finding]:
    """Check that the Secrets of the models exist and have the keys that the models use."""
    if namespace.keys is None:
        yield _unreadable(f"{namespace.name}: Secrets", "secrets")
        return
    for (kind, name), wanted in sorted(wanted_keys(namespace.models).items()):
        subject = f"{namespace.name}: {kind} {name}"
        existing = namespace.keys.get((kind, name))
        if existing is None:
            yield Finding(
                Level.FAILED,
                subject,
                f"the {kind} does not exist",
                f"Create the {kind} with {_list(wanted)}.",
            )
        elif missing := wanted - existing:
            yield Finding(
                Level.FAILED,
                subject,
                f"the {kind} lacks {_list(missing)}",
                f"Add {_list(missing)} to the {kind}.",
            )
        else:
            yield Finding(Level.OK, subject, f"the {kind} has {_list(wanted)}")


def wanted_keys(models: Sequence[Json]) -> dict[tuple[str, str], set[str]]:
    """Return the keys that the models use, by kind and name of the object that holds them."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for model in models:
        spec = model.get("spec", {})
        if reference := spec.get("credentialsSecretRef"):
            wanted.setdefault(("Secret", reference["name"]), set()).add("token")
        if reference := spec.get("webhookSecretRef"):
            wanted.setdefault(("Secret", reference["name"]), set()).add(reference["key"])
    return wanted


def check_egress(namespace: NamespaceView) -> Finding:
    """Check that the NetworkPolicies, taken together, let the loader use DNS and https."""
    subject = f"{namespace.name}: egress"
    if namespace.policies is None:
        return _unreadable(subject, "networkpolicies")
    selecting = [policy for policy in namespace.policies if _selects_loader(policy)]
    if not selecting:
        return Finding(Level.OK, subject, "no NetworkPolicy restricts the loader's egress")
    listed = ", ".join(policy["metadata"]["name"] for policy in selecting)
    rules = [rule for policy in selecting for rule in policy["spec"].get("egress") or ()]
    blocked = [
        name
        for name, port in (("DNS (53)", 53), ("https (443)", 443))
        if not any(_allows(rule, port) for rule in rules)
    ]
    if blocked:
        return Finding(
            Level.FAILED,
            subject,
            f"the loader has no egress for {' and '.join(blocked)}: NetworkPolicy {listed}",
            "Allow it in a NetworkPolicy. Ignore 443 if the loader uses a proxy on another port.",
        )
    return Finding(
        Level.OK, subject, f"the loader has egress for DNS and https: NetworkPolicy {listed}"
    )


def check_models(namespace: NamespaceView) -> Iterable[Finding]:
    """Report each model that is stalled, in the words of its condition."""
    for body in namespace.models:
        for condition in (body.get("status") or {}).get("conditions") or ():
            is_true = condition.get("status") == "True"
            if condition.get("type") == ConditionType.STALLED and is_true:
                subject = f"model {namespace.name}/{body['metadata']['name']}"
                message = f"{condition.get('reason')}: {condition.get('message')}"
                level = Level.FAILED if condition.get("reason") in OF_THE_CLUSTER else Level.WARNING
                yield Finding(level, subject, message)


def gpu_resource(operators: Sequence[Json]) -> str:
    """Return the GPU resource from the operator's settings, or the default."""
    return environment(operators).get("SD_OPERATOR_GPU_RESOURCE") or defaults.GPU_RESOURCE


def environment(operators: Sequence[Json]) -> dict[str, str]:
    """Return the literal environment variables of the operator's containers."""
    return {
        entry["name"]: entry.get("value", "")
        for pod in operators
        for container in pod["spec"]["containers"]
        for entry in container.get("env") or ()
    }


def _unreadable(subject: str, resource: str) -> Finding:
    message = f"cannot read {resource}: you lack permission, or the server does not have them"
    return Finding(Level.UNKNOWN, subject, message)


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _fields(schema: Json, path: str = "") -> set[str]:
    """Return the paths of all fields of a schema, nested ones too."""
    schema = schema.get("openAPIV3Schema", schema)
    paths: set[str] = set()
    for name, field_schema in (schema.get("properties") or {}).items():
        field_path = f"{path}.{name}" if path else name
        paths |= {field_path} | _fields(field_schema, field_path)
    items = schema.get("items")
    return paths | (_fields(items, f"{path}[]") if isinstance(items, Mapping) else set())


def _selects_loader(policy: Json) -> bool:
    """Return whether a policy restricts the egress of loader Pods."""
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
    return all(_matches(labels, item) for item in selector.get("matchExpressions") or ())


def _matches(labels: Mapping[str, str], expression: Json) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }.get(expression["operator"], True)


def _allows(rule: Json, port: int) -> bool:
    ports = rule.get("ports")
    if not ports:
        return True
    return any(_includes(entry, port) for entry in ports)


def _includes(entry: Json, port: int) -> bool:
    first = entry.get("port")
    if not isinstance(first, int):
        # A named port is defined by the destination Pods, which are not read: assume it matches.
        return True
    return first <= port <= int(entry.get("endPort", first))


def _list(keys: Iterable[str]) -> str:
    listed = sorted(keys)
    return f"the key{'s' * (len(listed) > 1)} {', '.join(listed)}"
