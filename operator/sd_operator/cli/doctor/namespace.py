"""Checks of a namespace with models: rights, PVCs, Secrets, and models that are stalled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sd_api.reasons import OF_THE_CLUSTER, Reason
from sd_api.status import ConditionType
from sd_operator.cli.doctor.findings import Finding, Json, Level, NamespaceView, unreadable
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.warning_event import WarningEvent


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
            "Upgrade the release to restore its Role: without it, the namespace is not served."
            if namespace.is_listed
            else "Add the namespace to models.namespaces in the chart's values.",
        )
    return Finding(Level.OK, subject, "the operator has all permissions that it needs")


def check_claims(namespace: NamespaceView) -> Iterable[Finding]:
    """Check that the PVCs of the models exist, are bound, and can be mounted on every node."""
    if namespace.claims is None:
        yield unreadable(f"{namespace.name}: PVC", "persistentvolumeclaims")
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
        elif (problem := _without_volume(claim, namespace.warnings.get(name))) is not None:
            level, message, remedy = problem
            yield Finding(level, subject, message, remedy)
        elif "ReadWriteMany" not in claim["spec"].get("accessModes", ()):
            yield Finding(
                Level.WARNING,
                subject,
                "the PVC is not ReadWriteMany",
                "Run loader Jobs and the Pods that use the models on the same node.",
            )
        else:
            yield Finding(Level.OK, subject, "bound, ReadWriteMany")


def _without_volume(claim: Json, warning: WarningEvent | None) -> tuple[Level, str, str] | None:
    """Return level, message and remedy if a PVC has no volume."""
    view = ClaimView.from_body(claim)
    message = view.why_without_volume(warning)
    if view.lost:
        return Level.FAILED, message, "Restore the PersistentVolume, or create the PVC again."
    if not view.never_bound:
        return None
    if warning is not None:
        return Level.FAILED, message, Reason.CLAIM_NOT_BOUND.remedy
    remedy = (
        f"Run kubectl describe pvc {view.name}. If its StorageClass waits for the first Pod, there"
        " is nothing to do."
    )
    return Level.WARNING, message, remedy


def check_keys(namespace: NamespaceView) -> Iterable[Finding]:
    """Check that the Secrets of the models exist and have the keys that the models use."""
    if namespace.keys is None:
        yield unreadable(f"{namespace.name}: Secrets", "secrets")
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


def _list(keys: Iterable[str]) -> str:
    listed = sorted(keys)
    return f"the key{'s' * (len(listed) > 1)} {', '.join(listed)}"
