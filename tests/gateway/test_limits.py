"""Tests of the limit on calls."""

from __future__ import annotations

import pytest

from sd_operator.gateway import limits
from sd_operator.gateway.limits import Limiter, network


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_burst_up_to_the_limit_then_one_call_at_a_time() -> None:
    """A rejected caller gets the seconds until the next call is allowed."""
    clock = Clock()
    limiter = Limiter(6, clock)
    assert [limiter.take("a") for _ in range(7)] == [0, 0, 0, 0, 0, 0, pytest.approx(10)]
    clock.now += 9.9
    assert limiter.take("a") == pytest.approx(0.1)
    clock.now += 0.11
    assert limiter.take("a") == 0
    assert limiter.take("a") > 9


def test_rejected_calls_do_not_count() -> None:
    """Rejected calls do not prolong the wait of a caller."""
    clock = Clock()
    limiter = Limiter(6, clock)
    for _ in range(1000):
        limiter.take("a")
    clock.now += 10.01
    assert limiter.take("a") == 0


def test_callers_have_separate_limits() -> None:
    """A caller that reaches the limit does not affect another."""
    limiter = Limiter(1, Clock())
    assert [limiter.take(caller) for caller in ("a", "b")] == [0, 0]
    assert limiter.take("a") > 0


def test_zero_means_no_limit() -> None:
    """With a limit of 0 every call is allowed."""
    limiter = Limiter(0, Clock())
    assert not any(limiter.take("a") for _ in range(1000))


def test_number_of_remembered_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller that called longest ago is forgotten first."""
    monkeypatch.setattr(limits, "CALLERS_MAX", 3)
    limiter = Limiter(1, Clock())
    for caller in "abacd":
        limiter.take(caller)
    assert len(limiter._ends) == 3
    assert limiter.take("a") > 0, "a called recently"
    assert limiter.take("b") == 0, "b was forgotten"


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:202", "192.0.2.2"),
        ("unix:", "unix:"),
        ("", ""),
    ],
)
def test_ipv6_callers_share_the_limit_of_their_network(address: str, caller: str) -> None:
    """All addresses of a /64 network count as one caller; other addresses count separately."""
    assert network(address) == caller
