"""Counts that tests report and a run adds up: how many hostile files it refused, and the like.

A test that has held calls `tally("hostile files refused")`, or with a count; the run's end prints
the sums, over all of pytest-xdist's workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

Tally = Callable[..., None]

PROPERTY = "tally"


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Count what the test has shown, once it has shown it."""

    def add(what: str, count: int = 1) -> None:
        record_property(PROPERTY, [what, count])

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sums of the tests that passed."""
    sums: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == PROPERTY and report.when == "call":
                what, count = value
                sums[what] += count
    if sums:
        terminalreporter.section("counts")
    for what, count in sorted(sums.items()):
        terminalreporter.write_line(f"{what}: {count}")
