"""Limits how often one caller may call. It counts in memory, so each replica has its own count."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

CALLERS_MAX = 10_000
"""How many callers are remembered; the one that called longest ago is forgotten first."""


class Limiter:
    """Allows each caller a number of calls per minute, in one burst or spread out.

    It uses the generic cell rate algorithm, which keeps one time per caller. 0 calls per minute
    mean that there is no limit.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._step = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        # The time at which a caller's calls would end if they were evenly spread. The caller that
        # called longest ago comes first.
        self._ends: dict[str, float] = {}

    def take(self, caller: str) -> float:
        """Count a call and return 0; if it exceeds the limit, return the seconds to wait."""
        now = self._clock()
        end = max(self._ends.pop(caller, now), now)
        wait = end + self._step - now - 60
        allowed = wait <= 0
        self._ends[caller] = end + self._step if allowed else end
        if len(self._ends) > CALLERS_MAX:
            del self._ends[next(iter(self._ends))]
        return 0.0 if allowed else wait


def network(address: str) -> str:
    """Return the caller behind an address: the address itself, or its /64 network for IPv6.

    A customer usually has a whole /64, and could evade a limit on single IPv6 addresses. Some
    proxies write IPv4 addresses as IPv6 (::ffff:1.2.3.4), which are all in the same /64: the IPv4
    address is returned for these.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
