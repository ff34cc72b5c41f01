"""A work queue for level-triggered controllers. A key that fails is tried again later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from sd_operator.standalone.errors import ApiError

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 5.0
"""The longest pause before a key that failed is tried again."""


class Workqueue:
    """Calls reconcile(key) for one key at a time.

    reconcile returns the seconds after which the key is due again, or None.
    """

    def __init__(self, name: str, reconcile: Callable[[str], Awaitable[float | None]]) -> None:
        self._name = name
        self._reconcile = reconcile
        self._keys: dict[str, None] = {}
        self._failures: dict[str, int] = {}
        self._ready = asyncio.Event()

    def add(self, key: str) -> None:
        """Queue a key, unless it is queued already."""
        self._keys[key] = None
        self._ready.set()

    async def run(self) -> None:
        """Call reconcile for each queued key, for ever; queue a key again after an error."""
        loop = asyncio.get_running_loop()
        while True:
            await self._ready.wait()
            key = next(iter(self._keys))
            del self._keys[key]
            if not self._keys:
                self._ready.clear()
            again: float | None
            try:
                again = await self._reconcile(key)
                self._failures.pop(key, None)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.debug("%s of %s: %s", self._name, key, error)
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                again = retry_seconds(failures)
            if again is not None:
                loop.call_later(again, self.add, key)


def retry_seconds(failures: int) -> float:
    """Return the pause before the next try of a key that has failed this many times in a row."""
    # The exponent is bounded, because a large power would not fit into a float.
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10), LAST_RETRY_SECONDS)
