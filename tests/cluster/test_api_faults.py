"""With every fault of the API server at every request, a model's life ends as without faults.

The requests are recorded from runs without faults. Many models run at once, each with its own
faults. If the operator ends, the test restarts it, as the Deployment would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from tests.support.operator.lives import Trial, World, attacks_at
from tests.support.operator.operators import Behind
from tests.support.proxies.apifaults import (
    KILLS,
    REQUEST_FAULTS,
    SILENCE,
    WATCH_FAILURES,
    WATCH_FAULTS,
)
from tests.support.proxies.faultproxy import Attack, Fault
from tests.support.tally import Tally

pytestmark = pytest.mark.cluster

Begin = Callable[..., Trial]


@pytest.fixture
def begin(behind: Behind) -> Begin:
    """Return a function that starts a trial with some operators."""

    def make(operators: int = 1) -> Trial:
        behind.operators.count = operators
        trial = Trial(World(behind.cluster, behind.proxy, behind.receiver), behind.operators)
        trial.rest()
        return trial

    return make


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(3, id="a third of the requests"),
        pytest.param(1, id="every request", marks=pytest.mark.slow),
    ],
)
def test_the_operator_survives_a_failed_request(begin: Begin, tally: Tally, share: int) -> None:
    """Each request fails once. The faults alternate and do not end the operator."""
    trial = begin()
    faults = itertools.cycle(REQUEST_FAULTS + WATCH_FAULTS)
    attacks = [
        Attack(point, next(fault for fault in faults if fault.on(point.what)))
        for point in trial.points[::share]
    ]
    made = trial.survive(attacks)
    assert trial.operators.deaths == 0
    tally("fault points survived", made)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(REQUEST_FAULTS + SILENCE, id="requests"),
        pytest.param(WATCH_FAULTS, id="watches"),
        pytest.param(KILLS, id="kills"),
        pytest.param(WATCH_FAILURES, id="failing watches"),
    ],
)
def test_every_fault_at_every_request(begin: Begin, faults: Sequence[Fault], tally: Tally) -> None:
    """Every fault hits every request; KILLS and WATCH_FAILURES end the operator each time."""
    trial = begin()
    attacks = attacks_at(trial.points, faults)
    tally("fault points survived", trial.survive(attacks))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_operators_at_once_do_all_work_exactly_once(begin: Begin, tally: Tally) -> None:
    """Even without an election and with lost replies, there is one Job and one id per event."""
    trial = begin(operators=2)
    late = [fault for fault in REQUEST_FAULTS if fault.name in ("answered late", "reply lost")]
    attacks = attacks_at(trial.points, late)
    tally("fault points survived", trial.survive(attacks))
