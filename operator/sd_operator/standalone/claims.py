"""Which PVCs standalone binds: it has no PersistentVolumes, so not those that ask for one."""

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
    """Return in the scheduler's words why a PVC keeps a Pod from its node; empty if it does not."""
    if claim is None:
        return f'persistentvolumeclaim "{name}" not found.'
    if claim["spec"].get("volumeName") and claim.get("status", {}).get("phase") != "Bound":
        return "pod has unbound immediate PersistentVolumeClaims."
    return ""
