"""Counts that tests report and a run adds up: how many hostile files it refused, and the like.

A test that has held calls `tally("hostile files refused")`, or with a count; the run's end prints
the sums, over all of pytest-xdist's workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

Tally = Callable[..., None]

_PROPERTY = "tally"


def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Return the function with which a test counts."""

    def add(what: str, count: int = 1) -> None:
        record_property(_PROPERTY, [what, count])

    return add


def print_sums(terminalreporter: Any) -> None:
    """Print the sums of the tests that passed."""
    sums: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == _PROPERTY and report.when == "call":
                what, count = value
                sums[what] += count
    if sums:
        terminalreporter.section("counts")
    for what, count in sorted(sums.items()):
        terminalreporter.write_line(f"{what}: {count}")
