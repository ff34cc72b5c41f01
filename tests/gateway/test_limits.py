"""How often one caller may call."""

from __future__ import annotations

import pytest

from sd_operator.gateway import limits
from sd_operator.gateway.limits import Limiter, network


class Clock:
    """A time that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_so_many_calls_may_be_made_at_once_and_then_one_by_one() -> None:
    """The wait is as long as it is told."""
    clock = Clock()
    limiter = Limiter(6, clock)
    assert [limiter.take("a") for _ in range(7)] == [0, 0, 0, 0, 0, 0, pytest.approx(10)]
    clock.now += 9.9
    assert limiter.take("a") == pytest.approx(0.1)
    clock.now += 0.11
    assert limiter.take("a") == 0
    assert limiter.take("a") > 9


def test_refused_calls_do_not_count() -> None:
    """Who hammers waits no longer for it."""
    clock = Clock()
    limiter = Limiter(6, clock)
    for _ in range(1000):
        limiter.take("a")
    clock.now += 10.01
    assert limiter.take("a") == 0


def test_callers_are_counted_apart() -> None:
    """One does not use up another's calls."""
    limiter = Limiter(1, Clock())
    assert [limiter.take(caller) for caller in ("a", "b")] == [0, 0]
    assert limiter.take("a") > 0


def test_zero_is_no_limit() -> None:
    """However many."""
    limiter = Limiter(0, Clock())
    assert not any(limiter.take("a") for _ in range(1000))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller who was seen longest ago is forgotten."""
    monkeypatch.setattr(limits, "CALLERS_MAX", 3)
    limiter = Limiter(1, Clock())
    for caller in "abacd":
        limiter.take(caller)
    assert len(limiter._used) == 3
    assert limiter.take("a") > 0, "seen lately"
    assert limiter.take("b") == 0, "forgotten"


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("unix:", "unix:"),
        ("", ""),
    ],
)
def test_an_ipv6_caller_is_a_network(address: str, caller: str) -> None:
    """Who has one address of it has all."""
    assert network(address) == caller
