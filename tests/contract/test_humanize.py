"""Sizes, durations and progress in words for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.fields import COUNT_MAX
from sd_api.humanize import describe, duration, files, size
from sd_api.status import StatusProgress
from sd_api.wire import Progress, Stage


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_999, "10 kB"),
        (999_499, "999 kB"),
        (999_501, "1.0 MB"),
        (2_132_625_894, "2.1 GB"),
        (120_000_000, "120 MB"),
        (10**13, "10 TB"),
        (7 * 10**15, "7 PB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Sizes have decimal units, as disks and downloads do."""
    assert size(count) == text


def test_numbers_of_files_for_people() -> None:
    """A single file is `1 file`; other numbers have the plural."""
    assert [files(count) for count in (0, 1, 12)] == ["0 files", "1 file", "12 files"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5_940, "99 min"),
        (6_000, "1 h 40 min"),
        (7_200, "2 h"),
        (360_000, "4 d"),
    ],
)
def test_durations_for_people(seconds: int, text: str) -> None:
    """A duration shows its two largest units."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        pytest.param(
            Progress(
                stage=Stage.DOWNLOADING,
                percent=42,
                bytes_done=900_000_000,
                bytes_total=2_100_000_000,
                bytes_per_second=120_000_000,
                eta_seconds=10,
            ),
            "42% of 2.1 GB, 120 MB/s, 10 s left",
            id="all",
        ),
        pytest.param(Progress(stage=Stage.VERIFYING), "", id="nothing"),
        pytest.param(Progress(stage=Stage.CONVERTING, percent=7), "7%", id="percent"),
        pytest.param(
            Progress(stage=Stage.DOWNLOADING, bytes_done=5_000_000), "5.0 MB", id="length unknown"
        ),
        pytest.param(
            Progress(stage=Stage.DOWNLOADING, bytes_done=0, bytes_total=1000),
            "0 B of 1.0 kB",
            id="percent unknown",
        ),
        pytest.param(
            Progress(stage=Stage.DOWNLOADING, bytes_done=5, bytes_per_second=2_000_000),
            "5 B, 2.0 MB/s",
            id="speed without a total",
        ),
    ],
)
def test_progress_for_people(progress: Progress, text: str) -> None:
    """Unknown values are left out."""
    assert describe(progress) == text


def test_progress_without_numbers_shows_its_stage() -> None:
    """Progress without numbers has the name of its stage as its text."""
    assert StatusProgress.of(Progress(stage=Stage.VERIFYING)).text == "verifying"
    downloading = Progress(stage=Stage.DOWNLOADING, percent=42)
    assert StatusProgress.of(downloading).model_dump(exclude_defaults=True) == {
        "stage": Stage.DOWNLOADING,
        "percent": 42,
        "text": "42%",
    }


COUNTS = st.none() | st.integers(0, COUNT_MAX)


@given(
    st.builds(
        Progress,
        stage=st.sampled_from(Stage),
        percent=st.none() | st.integers(0, 100),
        bytes_done=COUNTS,
        bytes_total=COUNTS,
        bytes_per_second=COUNTS,
        eta_seconds=COUNTS,
    )
)
def test_any_progress_fits_into_the_status(progress: Progress) -> None:
    """The loader's numbers are untrusted; the text of any numbers has at most 64 characters."""
    assert 0 < len(StatusProgress.of(progress).text) <= 64
