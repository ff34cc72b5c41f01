"""Counts that tests report and a run adds up, such as the number of rejected hostile files.

At its end a test calls `tally("hostile files refused")`, with a count if it is not 1. The run
prints the sums over all workers of pytest-xdist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

Tally = Callable[..., None]

_PROPERTY = "tally"


def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Return a function that reports a count under a name; `print_sums` adds the counts up."""

    def add(what: str, count: int = 1) -> None:
        record_property(_PROPERTY, [what, count])

    return add


def print_sums(terminalreporter: Any) -> None:
    """Print the sums of the counts of all passed tests."""
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
