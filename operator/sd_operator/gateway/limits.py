"""How often one caller may call. In memory, so each replica counts by itself."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

CALLERS_MAX = 10_000


class Limiter:
    """So many calls a minute for each caller, all at once or spread (GCRA: one time per caller)."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._step = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        # When a caller would have used up all calls had they been spread; the oldest call first.
        self._used: dict[str, float] = {}

    def take(self, caller: str) -> float:
        """Count a call: 0 where it may be made, else the seconds until one may be."""
        now = self._clock()
        used = max(self._used.pop(caller, now), now)
        wait = used + self._step - now - 60
        allowed = wait <= 0
        self._used[caller] = used + self._step if allowed else used
        if len(self._used) > CALLERS_MAX:
            del self._used[next(iter(self._used))]
        return 0.0 if allowed else wait


def network(address: str) -> str:
    """The caller that an address stands for: one has a whole /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))
