"""Checks of the installation: the CRD, the operator's Pods, its namespaces, and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sd_api import defaults, names
from sd_api.crd import custom_resource_definition
from sd_operator.cli.doctor.findings import CRD, Finding, Json, Level, environment, unreadable


def check_crd(crd: Json | None) -> Finding:
    """Check that the CRD is installed, served, and has exactly the fields of this version."""
    subject = "CRD"
    if crd is None:
        return unreadable(subject, "customresourcedefinitions")
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
        return unreadable(subject, "pods")
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


def check_listed(listed: Mapping[str, Json | None]) -> Iterable[Finding]:
    """Report each listed namespace that does not exist, is being deleted, or cannot be read."""
    for name, body in listed.items():
        subject = f"namespace {name}"
        if body is None:
            yield unreadable(subject, "namespaces")
        elif not body:
            yield Finding(
                Level.FAILED,
                subject,
                "the operator is set to serve it, but it does not exist",
                "Create the namespace and upgrade the release, or remove it from models.namespaces"
                " in the chart's values.",
            )
        elif "deletionTimestamp" in body["metadata"]:
            yield Finding(
                Level.WARNING,
                subject,
                "the operator is set to serve it, but it is being deleted",
                "Remove it from models.namespaces in the chart's values.",
            )


def listed_namespaces(operators: Sequence[Json]) -> list[str]:
    """Return the namespaces that the operators are set to serve; empty if they serve all."""
    settings = (environment([pod]).get("SD_OPERATOR_NAMESPACES", "") for pod in operators)
    words = {word.strip() for setting in settings for word in setting.split(",")}
    return sorted(words - {""})


def gpu_resource(operators: Sequence[Json]) -> str:
    """Return the GPU resource from the operator's settings, or the default."""
    return environment(operators).get("SD_OPERATOR_GPU_RESOURCE") or defaults.GPU_RESOURCE


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
