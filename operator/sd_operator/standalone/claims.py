"""The PVCs of models, and which of them standalone binds.

Standalone has no PersistentVolumes, so it does not bind a PVC that names one.
"""

from __future__ import annotations

from sd_api import names
from sd_operator.standalone.errors import Json


def for_models(namespace: str, name: str) -> Json:
    """Return the manifest of a PVC that all models of its namespace may use."""
    labels = {names.LABEL_MODELS: "true"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Ti"}},
        },
    }


def bound_status(claim: Json) -> Json | None:
    """Return the status that binds a PVC; None if it is bound already or names a volume."""
    spec = claim["spec"]
    if claim.get("status", {}).get("phase") == "Bound" or spec.get("volumeName"):
        return None
    return {
        "phase": "Bound",
        "accessModes": spec["accessModes"],
        "capacity": {"storage": spec["resources"]["requests"]["storage"]},
    }


def obstacle(name: str, claim: Json | None) -> str:
    """Return why no Pod with this PVC can be scheduled, in the scheduler's words; empty if it can.

    claim: None if the PVC does not exist.
    """
    if claim is None:
        return f'persistentvolumeclaim "{name}" not found.'
    if claim["spec"].get("volumeName") and claim.get("status", {}).get("phase") != "Bound":
        return "pod has unbound immediate PersistentVolumeClaims."
    return ""
