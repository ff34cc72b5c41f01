"""The clock, and times as Kubernetes writes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

EPOCH = datetime.fromtimestamp(0, UTC)
"""Stands for the time of an object that has none."""


def now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """The clock. Callers pass it in, so that tests can control the time."""

    now: Callable[[], datetime]
    """The date and time of day, to compare with the times in objects."""
    monotonic: Callable[[], float]
    """Seconds of a clock that never goes back, to measure durations."""


SYSTEM_CLOCK = Clock(now, time.monotonic)


def stamp(moment: datetime) -> str:
    """Write a time by RFC 3339, in UTC and whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp_micro(moment: datetime) -> str:
    """Write a time as Kubernetes writes a MicroTime, with six digits after the seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: object) -> datetime | None:
    """Read a time; return None if the value is not a time."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
