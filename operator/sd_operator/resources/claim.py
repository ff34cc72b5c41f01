"""A read-only view of a PersistentVolumeClaim, why it is not bound, and which models may use it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sd_api import names
from sd_operator.resources.warning_event import WarningEvent

_BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
"""The annotation that Kubernetes sets when it binds a PVC, before it writes the phase."""
_MISSING_CLASS = re.compile(r'storageclass\S* "([^"]+)" not found')


@dataclass(frozen=True)
class ClaimView:
    """A PersistentVolumeClaim."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    deleting: bool = False
    for_models: bool = False
    """Whether the PVC's label lets every model of the namespace use the PVC."""
    never_bound: bool = False
    """Whether the PVC has never had a volume, so that no Pod could mount it."""
    lost: bool = False
    """Whether the PVC's volume is gone. Kubernetes binds the PVC again if the volume returns."""
    volume_name: str = ""
    """The PersistentVolume that the PVC is bound to, or that its spec asks for."""
    storage_class: str = ""
    """The StorageClass that the PVC names; empty without one, if the cluster has no default."""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> ClaimView:
        """Read a PersistentVolumeClaim from the API server's JSON."""
        metadata, spec = body["metadata"], body.get("spec") or {}
        phase = (body.get("status") or {}).get("phase")
        was_bound = _BIND_COMPLETED in (metadata.get("annotations") or {})
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            resource_version=metadata.get("resourceVersion") or "",
            deleting="deletionTimestamp" in metadata,
            for_models=(metadata.get("labels") or {}).get(names.LABEL_MODELS) == "true",
            never_bound=phase == "Pending" and not was_bound,
            lost=phase == "Lost",
            volume_name=spec.get("volumeName") or "",
            storage_class=spec.get("storageClassName") or "",
        )

    @property
    def has_volume(self) -> bool:
        """Whether a Pod can mount the PVC, according to the PVC's status."""
        return not (self.never_bound or self.lost)

    def why_without_volume(self, warning: WarningEvent | None) -> str:
        """Return in one sentence why the PVC has no volume; warning: its newest Warning Event."""
        subject = f"PersistentVolumeClaim {self.name}"
        if self.lost:
            return f"{subject} has lost its PersistentVolume {self.volume_name}".rstrip()
        return f"{subject} is not bound: {self._why_not_bound(warning)}"

    def _why_not_bound(self, warning: WarningEvent | None) -> str:
        if warning is not None:
            missing = _MISSING_CLASS.search(warning.message)
            return f"StorageClass {missing[1]} does not exist" if missing else warning.message
        if self.volume_name:
            return f"PersistentVolume {self.volume_name} does not exist or does not fit"
        if self.storage_class:
            return f"StorageClass {self.storage_class} has not provided a volume yet"
        return "it names no StorageClass, and no PersistentVolume fits"


def claim_is_allowed(
    name: str, claim: ClaimView | None, artifact_claim_uid: str | None, allowed: Collection[str]
) -> bool:
    """Whether a model may use the PVC of this name. Operator and gateway share this rule.

    Besides the allowed names, a model may use a PVC with the label, and the PVC on which it is
    published. That PVC is recognised by its uid, because a new PVC may have the same name.
    """
    if name in allowed:
        return True
    return claim is not None and (claim.for_models or claim.uid == artifact_claim_uid)
