"""A Warning Event about a Job or a Pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sd_api.redaction import redact_text
from sd_operator.base import times

_TEXT_MAX_LENGTH = 4096
"""Anyone who may create Events decides how long they are."""


@dataclass(frozen=True)
class WarningEvent:
    """A Warning Event of a Job or a Pod; anyone who may create Events can forge it."""

    reason: str
    message: str
    """Its text without secrets; it may have any form, and up to 4096 characters."""
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
