"""Leader election: of all operators of a cluster one is at work, the others stand by.

It keeps two from doing the same work for long; that two do no harm is everybody's duty, since a
leader may be stopped in mid-request and go on after another has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sd_operator.clients.lease import RENEW_SECONDS, RETRY_SECONDS, Lease

log = logging.getLogger(__name__)


async def acquire(lease: Lease, stop: asyncio.Event, standing_by: Callable[[], None]) -> bool:
    """Wait until the Lease is ours, or until `stop`; standing_by: the Lease can be read."""
    told = ""
    while not stop.is_set():
        held = await lease.hold()
        if held:
            log.info("leading, as %s", lease.identity)
            return True
        if lease.problem:
            news = f"the election cannot be held: {lease.problem}"
        else:
            standing_by()
            news = f"standing by; {lease.holder or 'nobody'} leads"
        if news != told:
            log.log(logging.WARNING if lease.problem else logging.INFO, "%s", news)
            told = news
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
    return False


async def keep(lease: Lease) -> str:
    """Renew the Lease for as long as that works; returns why it was lost."""
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
