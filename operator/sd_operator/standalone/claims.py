"""Decides which PVCs standalone binds: all except those that name a PersistentVolume.

Standalone has no PersistentVolumes.
"""

from __future__ import annotations

from sd_operator.standalone.errors import Json


def bound_status(claim: Json) -> Json | None:
    """Return the status of a PVC to bind; None if it is bound, or cannot be."""
    spec = claim["spec"]
    if claim.get("status", {}).get("phase") == "Bound" or spec.get("volumeName"):
        return None
    return {
        "phase": "Bound",
        "accessModes": spec["accessModes"],
        "capacity": {"storage": spec["resources"]["requests"]["storage"]},
    }


def obstacle(name: str, claim: Json | None) -> str:
    """Return why a Pod with this PVC gets no node, as the scheduler words it; else empty."""
    if claim is None:
        return f'persistentvolumeclaim "{name}" not found.'
    if claim["spec"].get("volumeName") and claim.get("status", {}).get("phase") != "Bound":
        return "pod has unbound immediate PersistentVolumeClaims."
    return ""
