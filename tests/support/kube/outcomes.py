"""The table of a run on another API server: the cluster tests that ran, failed and were skipped."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

OUTCOMES = ("passed", "failed", "error", "skipped")


def print_table(terminalreporter: Any) -> None:
    """Print the outcomes of the cluster tests by file, and the reasons of those skipped."""
    files: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            if "cluster" not in getattr(report, "keywords", ()):
                continue
            files[report.nodeid.partition("::")[0]][outcome] += 1
            if outcome == "skipped":
                reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if not files:
        return
    terminalreporter.section("cluster tests")
    rows = [*sorted(files.items()), ("all", sum(files.values(), Counter()))]
    width = max(len(name) for name, _ in rows)
    for name, counts in [("", {outcome: outcome for outcome in OUTCOMES}), *rows]:
        cells = "".join(f"{counts[outcome]:>9}" for outcome in OUTCOMES)
        terminalreporter.write_line(f"{name:<{width}}{cells}")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
