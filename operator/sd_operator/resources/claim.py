"""A read-only view of a PersistentVolumeClaim, and which models may use it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sd_api import names


@dataclass(frozen=True)
class ClaimView:
    """A PersistentVolumeClaim."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    deleting: bool = False
    for_models: bool = False
    """Whether its label lets every model of the namespace use it."""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> ClaimView:
        """Read a PersistentVolumeClaim from the API server's JSON."""
        metadata = body["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            resource_version=metadata.get("resourceVersion") or "",
            deleting="deletionTimestamp" in metadata,
            for_models=(metadata.get("labels") or {}).get(names.LABEL_MODELS) == "true",
        )


def claim_is_allowed(
    name: str, claim: ClaimView | None, artifact_claim_uid: str | None, allowed: Collection[str]
) -> bool:
    """Whether a model may use the claim of this name; operator and gateway ask the same.

    Besides the allowed names, models may use a labelled claim, and the one on which the model is
    already published. A name alone does not prove that: the claim may be a new one of this name.
    """
    if name in allowed:
        return True
    return claim is not None and (claim.for_models or claim.uid == artifact_claim_uid)
