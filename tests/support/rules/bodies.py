"""Models with a status, as `kubectl sdm` reads them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sd_operator.base import times
from tests.support.rules.observed import NOW, body


def condition(kind: str, status: str = "True", reason: str = "Loaded", message: str = "") -> Any:
    """Return a condition of a model's status."""
    moment = times.stamp(NOW)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
    }


def resource(*conditions: Any, observed: int = 1, **status: Any) -> dict[str, Any]:
    """Return a model with this status; it was created three minutes before NOW."""
    model = body({"observedGeneration": observed, "conditions": list(conditions), **status})
    model["metadata"]["creationTimestamp"] = times.stamp(NOW - timedelta(minutes=3))
    return model
