"""The operator, the gateway and the command line take the time from one clock."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

READS_THE_CLOCK = re.compile(r"\btime\.(time|monotonic)\(|\bdatetime\.(now|utcnow)\(")
EXEMPT = {
    "base/httpd.py": "measures how long a connection is open",
    "base/times.py": "is the clock",
    "gateway/metrics.py": "measures how long a call takes",
}
"""Modules that may read the clock, each with the reason."""


def test_only_the_clock_reads_the_time() -> None:
    """No other module reads the time itself, so that tests can set it.

    Standalone is a stand-in for the cluster: it has its own clock, as an API server does.
    """
    wings = ROOT / "operator/sd_operator"
    readers = {
        str(path.relative_to(wings))
        for path in wings.rglob("*.py")
        if READS_THE_CLOCK.search(path.read_text())
    }
    assert {path for path in readers if not path.startswith("standalone/")} == set(EXEMPT)
