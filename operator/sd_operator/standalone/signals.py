"""Runs coroutines until one of them ends or a signal stops them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Sequence


async def until_signal(work: Sequence[Coroutine[None, None, None]]) -> None:
    """Run all coroutines until SIGTERM or SIGINT comes or one ends; cancel and await the others.

    Raise the first exception that a coroutine raised.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in [*tasks, stopped]:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
