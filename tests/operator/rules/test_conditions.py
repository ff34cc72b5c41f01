from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.load import Progress, Stage
from sd_api.status import Condition, ConditionType
from sd_operator.base.humanize import describe, duration, size
from sd_operator.rules import conditions


def condition(status: str = "True", at: str = "2026-01-01T00:00:00Z", **fields: str) -> Condition:
    """A condition Ready."""
    return Condition.model_validate(
        {"type": "Ready", "status": status, "reason": "Word", "lastTransitionTime": at, **fields}
    )


def test_a_new_condition_is_added() -> None:
    """After those that are there."""
    other = condition(type="Stalled")
    assert conditions.put([other], condition()) == [other, condition()]


def test_the_transition_time_stays_while_the_status_stays() -> None:
    """A new reason or message alone is no transition."""
    new = condition(at="2026-02-02T00:00:00Z", message="news")
    (result,) = conditions.put([condition()], new)
    assert (result.message, result.last_transition_time) == ("news", "2026-01-01T00:00:00Z")


def test_the_transition_time_moves_with_the_status() -> None:
    """True to False is a transition."""
    new = condition("False", at="2026-02-02T00:00:00Z")
    assert conditions.put([condition()], new) == [new]


def test_a_condition_is_dropped_where_it_is_present() -> None:
    """And nothing happens where it is not."""
    assert conditions.drop([condition()], ConditionType.READY) == []
    assert conditions.drop([condition()], ConditionType.STALLED) == [condition()]


@pytest.mark.parametrize(
    ("cause", "remedy", "message"),
    [
        pytest.param("It broke.", "Mend it.", "It broke. Mend it.", id="short"),
        pytest.param("It broke.", "", "It broke.", id="no remedy"),
        pytest.param("It broke badly.", "Mend it.", "It broke… Mend it.", id="the cause is cut"),
        pytest.param("It broke badly, twice.", "", "It broke badly, t…", id="cut, no remedy"),
    ],
)
def test_a_long_message_keeps_its_remedy(cause: str, remedy: str, message: str) -> None:
    """Only the cause is cut: the remedy is what the reader needs."""
    assert conditions.fit(cause, remedy, limit=18) == message


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
        (7 * 10**15, "7 PB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Decimal units, as disks and downloads count."""
    assert size(count) == text


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
    """The two coarsest units that matter."""
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
        pytest.param(Progress(stage=Stage.VERIFYING), "verifying", id="nothing"),
        pytest.param(Progress(stage=Stage.CONVERTING, percent=7), "7%", id="percent"),
        pytest.param(
            Progress(stage=Stage.DOWNLOADING, bytes_done=5_000_000), "5.0 MB", id="length unknown"
        ),
    ],
)
def test_progress_for_people(progress: Progress, text: str) -> None:
    """What is not known is left out."""
    assert describe(progress).text == text


@given(
    st.builds(
        Progress,
        stage=st.sampled_from(Stage),
        percent=st.none() | st.integers(0, 100),
        bytes_done=st.none() | st.integers(0, 10**30),
        bytes_total=st.none() | st.integers(0, 10**30),
        bytes_per_second=st.none() | st.integers(0, 10**30),
        eta_seconds=st.none() | st.integers(0, 10**15),
    )
)
def test_any_progress_fits_into_the_status(progress: Progress) -> None:
    """The loader's numbers are untrusted: the text is never refused by the CRD."""
    assert 0 < len(describe(progress).text) <= 64
