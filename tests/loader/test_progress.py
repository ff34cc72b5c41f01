"""Progress reports: JSON lines for the operator, a bar or plain lines for people."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from sd_api.fields import COUNT_MAX
from sd_api.wire import Progress, Stage
from sd_loader.progress import BAR_WIDTH, Reporter, complete, for_people, json_lines, text

HALF = "Downloading 50% of 1.0 kB"


class Clock:
    """A clock that the test sets by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def plain(shown: str) -> str:
    """Return what a terminal shows, without the escape sequences for colours and line clearing."""
    return re.sub(r"\x1b\[[0-9;]*[mK]", "", shown)


def downloading(done: int, total: int | None = 1000, **fields: Any) -> Progress:
    """Progress of a download with `done` of `total` bytes."""
    return Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total, **fields)


def test_reports_are_limited_per_interval_except_for_a_new_stage() -> None:
    """The log stays short, and the operator learns of a new stage at once."""
    clock, written = Clock(), []
    report = Reporter(written.append, 1.0, clock)
    for second, progress in (
        (0.0, downloading(1)),
        (0.5, downloading(2)),
        (0.9, downloading(3)),
        (1.0, downloading(4)),
        (1.1, Progress(stage=Stage.CONVERTING)),
        (1.2, Progress(stage=Stage.CONVERTING, percent=50)),
        (2.1, Progress(stage=Stage.CONVERTING, percent=60)),
    ):
        clock.now = 100 + second
        report(progress)
    assert [(progress.stage, progress.bytes_done or progress.percent) for progress in written] == [
        (Stage.DOWNLOADING, 1),
        (Stage.DOWNLOADING, 4),
        (Stage.CONVERTING, None),
        (Stage.CONVERTING, 60),
    ]


def test_json_lines_decode_to_progress() -> None:
    """Each line holds one Progress without its empty fields."""
    stream = io.StringIO()
    report = json_lines(stream)
    report(downloading(250, percent=25))
    report(Progress(stage=Stage.PUBLISHING))
    first, second = stream.getvalue().splitlines()
    assert Progress.decode(first) == downloading(250, percent=25)
    assert second == '{"stage":"Publishing"}'


@pytest.mark.parametrize(
    ("progress", "seconds", "before", "percent", "rate", "eta"),
    [
        pytest.param(downloading(500), 5.0, 0, 50, 100, 5, id="from bytes and time"),
        pytest.param(downloading(500), 5.0, 400, 50, 20, 25, id="resumed bytes do not count"),
        pytest.param(downloading(500), 0.0, 0, 50, None, None, id="no time has passed"),
        pytest.param(downloading(500, None), 5.0, 0, None, 100, None, id="total unknown"),
        pytest.param(downloading(500, 0), 5.0, 0, None, 100, None, id="total zero"),
        pytest.param(downloading(9999), 1.0, 0, 100, 9999, 0, id="more bytes than the total"),
        pytest.param(
            downloading(10**12), 1e-9, 0, 100, COUNT_MAX, 0, id="above the contract's maximum"
        ),
        pytest.param(
            downloading(500, percent=7, bytes_per_second=3, eta_seconds=2), 5.0, 0, 7, 3, 2,
            id="given values stay",
        ),
        pytest.param(Progress(stage=Stage.VERIFYING), 5.0, 0, None, None, None, id="no bytes"),
    ],
)  # fmt: skip
def test_percent_speed_and_eta_are_computed(
    progress: Progress,
    seconds: float,
    before: int,
    percent: int | None,
    rate: int | None,
    eta: int | None,
) -> None:
    """`complete` computes missing values from the bytes and the elapsed time."""
    completed = complete(progress, seconds, before)
    assert completed.percent == percent
    assert completed.bytes_per_second == rate
    assert completed.eta_seconds == eta


def test_terminal_redraws_one_line() -> None:
    """A bar first clears the line and does not end it, so each bar replaces the previous one."""
    stream = Terminal()
    for_people(stream)(downloading(500, percent=50))
    shown = stream.getvalue()
    assert shown.startswith("\r\x1b[K")
    assert re.fullmatch(rf"\r[━╺╸]{{{BAR_WIDTH}}} {HALF}", plain(shown))
    assert "\n" not in shown


def test_line_on_a_terminal_fits_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer line would wrap, and the next one would not replace it."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    for_people(stream)(downloading(500, percent=50, bytes_per_second=10**6, eta_seconds=90))
    shown = plain(stream.getvalue()).strip("\r")
    assert len(shown) < 40
    assert shown.endswith(" Downloading 5…")


def test_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar's package belongs to an extra; the loader works without it."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Terminal()
    for_people(stream)(downloading(500, percent=50))
    assert stream.getvalue() == f"{HALF}\n"


def test_file_gets_plain_lines() -> None:
    """Output that is not a terminal contains no control characters."""
    stream = io.StringIO()
    for_people(stream)(downloading(500, percent=50))
    assert stream.getvalue() == f"{HALF}\n"


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Progress(stage=Stage.CONVERTING), "Converting"),
        (downloading(0), "Downloading 0 B of 1.0 kB"),
        (downloading(5, None, bytes_per_second=2_000_000), "Downloading 5 B, 2.0 MB/s"),
        (downloading(5, percent=0, eta_seconds=9), "Downloading 0% of 1.0 kB, 9 s left"),
    ],
)
def test_progress_text_holds_only_known_values(progress: Progress, words: str) -> None:
    """Unknown values are left out of the text."""
    assert text(progress) == words


@pytest.mark.parametrize(("percent", "filled"), [(0, 0), (50, 12), (100, 24)])
def test_bar_has_a_fixed_width(percent: int, filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is filled in proportion to the percentage."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    for_people(stream)(downloading(percent * 10, percent=percent))
    assert stream.getvalue().count("━") == filled
