"""The controller's memory of one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sd_operator.reconciler.gather import LastProgress
from sd_operator.resources.observed import Delivery, Rejection


@dataclass
class Memory:
    """The state of a model between passes. It is lost when the process ends."""

    body: dict[str, Any]
    """The newest known version of the model, without managedFields."""
    resync_at: float
    """When to read the model again even if no event comes, by the monotonic clock."""
    claim: tuple[str, str] | None = None
    """Namespace and name of the PVC that the last pass used; None before the first pass."""
    decided: str = ""
    """The last decision that was logged."""
    namespace_ends: bool = False
    """Whether the namespace is being deleted, and the operator has no rights in it any more."""
    progress: LastProgress = field(default_factory=LastProgress)
    rejection: Rejection | None = None
    """The last rejection of a Job; None if the spec has changed or a Job was created since."""
    deliveries: list[Delivery] = field(default_factory=list)
    """Finished webhook calls that are not recorded in the status yet."""
    in_flight: set[str] = field(default_factory=set)
    """The webhook-ids of the calls under way."""
