"""Leader election: one operator of a cluster works, and the others stand by.

The election only avoids duplicate work; correctness does not depend on it. A leader may pause in
the middle of a request and continue after another operator has taken over, so the rest of the
operator is written so that two leaders at once do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sd_operator.clients.lease import RENEW_SECONDS, RETRY_SECONDS, Lease

log = logging.getLogger(__name__)

LATE_SECONDS = 0.05
"""How long a standby waits after the holder's Lease has lapsed, because clocks round times."""


async def acquire(lease: Lease, stop: asyncio.Event, standing_by: Callable[[], None]) -> bool:
    """Wait until the Lease is ours or `stop` is set; return whether it is ours.

    standing_by: called after each attempt in which another candidate had the Lease or was faster.
    """
    last_message = ""
    while not stop.is_set():
        held = await lease.hold()
        if held:
            log.info("leading, as %s", lease.identity)
            return True
        if lease.problem:
            message = f"the election cannot be held: {lease.problem}"
        else:
            standing_by()
            message = f"standing by; {lease.holder or 'no operator'} leads"
        if message != last_message:
            log.log(logging.WARNING if lease.problem else logging.INFO, "%s", message)
            last_message = message
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _pause(lease))
    return False


def _pause(lease: Lease) -> float:
    """Return the time until the next attempt: shorter if the holder's Lease lapses earlier."""
    if lease.lapses_in == 0:
        return RETRY_SECONDS
    return min(RETRY_SECONDS, lease.lapses_in + LATE_SECONDS)


async def keep(lease: Lease) -> str:
    """Renew the Lease as long as possible; return why it was lost."""
    clock = asyncio.get_running_loop().time
    renewed = clock()
    try:
        while True:
            async with asyncio.timeout_at(renewed + RENEW_SECONDS):
                await asyncio.sleep(RETRY_SECONDS)
                begun = clock()
                if await lease.hold():
                    renewed = begun
                elif lease.holder not in ("", lease.identity):
                    return f"{lease.holder} leads now"
    except TimeoutError:
        why = lease.problem or "it was always changed by another"
        return f"the Lease could not be renewed for {RENEW_SECONDS:.0f} s: {why}"
