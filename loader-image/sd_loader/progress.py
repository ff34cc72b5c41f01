"""Progress output of a load: JSON lines for the operator, a bar or text lines for people."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from sd_api.fields import COUNT_MAX
from sd_api.humanize import describe
from sd_api.wire import Progress, Stage

Report = Callable[[Progress], None]


def no_report(_progress: Progress) -> None:
    """Report nothing: for a download of small files only."""


_JSON_INTERVAL = 1.0
_LINES_INTERVAL = 10.0
_BAR_INTERVAL = 0.1
BAR_WIDTH = 24
CLEAR_LINE = "\r\x1b[K"
"""Removes the bar from a terminal before other text is written."""


class Reporter:
    """Adds percent, speed and remaining time to progress, and writes it.

    A new stage is written at once. Further progress of the same stage is written at most once in
    `interval` seconds.
    """

    def __init__(
        self,
        write: Callable[[Progress], None],
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._stage: Stage | None = None
        self._first = (0.0, 0)
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        """Report progress. Any thread may call this, as often as it likes."""
        with self._lock:
            now = self._clock()
            if progress.stage is not self._stage:
                self._stage = progress.stage
                self._first = (now, progress.bytes_done or 0)
            elif now - self._last < self._interval:
                return
            self._last = now
            # A closed log must not end the load.
            with contextlib.suppress(OSError):
                self._write(complete(progress, now - self._first[0], self._first[1]))


def complete(progress: Progress, seconds: float, bytes_before: int) -> Progress:
    """Fill in percent, speed and remaining time.

    seconds: time since the stage began. bytes_before: bytes that were done by then, which do not
    count for the speed.
    """
    done, total = progress.bytes_done, progress.bytes_total
    if done is None:
        return progress
    rate = progress.bytes_per_second
    if rate is None and seconds > 0:
        rate = min(max(0, int((done - bytes_before) / seconds)), COUNT_MAX)
    update: dict[str, int | None] = {"bytes_per_second": rate}
    if total:
        if progress.percent is None:
            update["percent"] = min(100, 100 * done // total)
        if progress.eta_seconds is None and rate:
            update["eta_seconds"] = max(0, total - done) // rate
    return progress.model_copy(update=update)


def json_lines(stream: TextIO | None = None) -> Reporter:
    """Return a reporter that writes one JSON object per line, for the operator."""
    out = stream or sys.stdout

    def write(progress: Progress) -> None:
        print(progress.encode(), file=out, flush=True)

    return Reporter(write, _JSON_INTERVAL)


def for_people(stream: TextIO | None = None) -> Reporter:
    """Return a reporter that draws a bar on a terminal, and otherwise writes lines of text.

    The bar is drawn by rich, which is installed with an extra; without it there are only lines.
    """
    out = stream or sys.stderr
    if out.isatty():
        with contextlib.suppress(ModuleNotFoundError):
            return Reporter(_bar(out), _BAR_INTERVAL)

    def write_line(progress: Progress) -> None:
        print(text(progress), file=out, flush=True)

    return Reporter(write_line, _LINES_INTERVAL)


def _bar(out: TextIO) -> Callable[[Progress], None]:
    """Return a function that draws one line, over the line before.

    rich's live display would do the same, but it hides the cursor until it is stopped. A signal
    ends the loader at once, and the cursor would stay hidden.
    """
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    console = Console(file=out)

    def draw(progress: Progress) -> None:
        percent = progress.percent
        bar = ProgressBar(completed=percent or 0, width=BAR_WIDTH, pulse=percent is None)
        line, width = Text(f" {text(progress)}"), max(1, console.width - BAR_WIDTH - 1)
        out.write(CLEAR_LINE)
        console.print(bar, end="")
        console.print(line, end="", no_wrap=True, overflow="ellipsis", width=width)
        out.flush()

    return draw


def text(progress: Progress) -> str:
    """Format progress with its stage: `Downloading 45% of 4.3 GB, 85 MB/s, 28 s left`."""
    return f"{progress.stage} {describe(progress)}".rstrip()
