"""A Warning Event about a Job, a Pod or a PersistentVolumeClaim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sd_api.redaction import redact_text
from sd_operator.base import times

_TEXT_MAX_LENGTH = 4096
"""Limit of an Event's message. Anyone who may create Events decides how long the message is."""
_REPORTERS: Mapping[str, frozenset[str]] = {
    "Job": frozenset({"job-controller"}),
    "Pod": frozenset({"kubelet", "attachdetach-controller", "default-scheduler"}),
}
"""The components of Kubernetes that report why a Job has no Pods, and why a Pod does not start."""
_NOT_BOUND = frozenset({"FailedBinding", "ProvisioningFailed", "VolumeMismatch"})
"""The reasons of Events that say why a PersistentVolumeClaim is not bound. The component is not
compared: each storage driver reports under its own name."""


@dataclass(frozen=True)
class WarningEvent:
    """A Warning Event; anyone who may create Events in the namespace can forge it."""

    reason: str
    message: str
    """The Event's message without secrets, cut to a limit; it may have any form."""
    at: datetime
    """When it last happened."""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> WarningEvent:
        """Read an Event from the API server's JSON."""
        stamps = (
            (body.get("series") or {}).get("lastObservedTime"),
            body.get("lastTimestamp"),
            body.get("eventTime"),
            (body.get("metadata") or {}).get("creationTimestamp"),
        )
        parsed = (times.parse(stamp) for stamp in stamps)
        return cls(
            reason=str(body.get("reason") or "")[:64],
            message=redact_text(str(body.get("message") or "")[:_TEXT_MAX_LENGTH]),
            at=next((moment for moment in parsed if moment is not None), times.EPOCH),
        )


def explains_a_start(body: Mapping[str, Any]) -> bool:
    """Whether an Event may explain why a Job does not start.

    All other Events are ignored, because a newer one could hide the explanation.
    """
    kind = body["involvedObject"].get("kind")
    if kind == "PersistentVolumeClaim":
        return body.get("reason") in _NOT_BOUND
    reporter = body.get("reportingComponent") or (body.get("source") or {}).get("component")
    return reporter in _REPORTERS.get(kind, ())
