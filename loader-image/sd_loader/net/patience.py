"""How long the loader waits for a server: retries, and a minimum speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sd_loader.errors import TransientError

T = TypeVar("T")

_PROGRESS_BYTES = 1 << 20


@dataclass(frozen=True)
class Retries:
    """How transient failures are retried within one Pod. After that, the Job starts another Pod."""

    delays: tuple[float, ...] = (0.5, 2.0, 5.0)
    """Seconds before each retry."""

    longest_wait: float = 30.0
    """Seconds. If the server asks to wait longer than this, the failure is not retried."""

    sleep: Callable[[float], None] = time.sleep

    def run(self, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Run an action, and retry it after a TransientError.

        The count of failures starts again whenever progress() exceeds its best value by 1 MiB.
        """
        best, failures = progress(), 0
        while True:
            try:
                return action()
            except TransientError as error:
                # A download that restarts repeatedly must not count as progress.
                if progress() >= best + _PROGRESS_BYTES:
                    best, failures = progress(), 0
                if failures >= len(self.delays) or error.after > self.longest_wait:
                    raise
                self.sleep(max(self.delays[failures], error.after))
                failures += 1


RETRIES = Retries()


@dataclass(frozen=True)
class Pace:
    """The minimum speed of a server, averaged over a window of time spent waiting for it."""

    bytes_per_second: int = 1024
    window_seconds: float = 60.0


PACE = Pace()
