"""Order and limits of the queue; a model is `<namespace><number>[<priority>]`."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules import queue
from sd_operator.rules.queue import Limits, Waiting
from tests.support.rules.observed import NOW

DEFAULT = Limits(10, 4)


def models(text: str) -> list[Waiting]:
    """Return the models that a text lists, the oldest first."""
    found = []
    for age, word in enumerate(text.split()):
        match = re.fullmatch(r"([a-z])(\d+)(?:\[(-?\d+)\])?", word)
        assert match is not None
        created = NOW + timedelta(seconds=age)
        found.append(Waiting(match[1] + match[2], match[1], int(match[3] or 0), created))
    return found


@pytest.mark.parametrize(
    ("loading", "waiting", "limits", "expected"),
    [
        pytest.param("", "", DEFAULT, " | ", id="nobody waits"),
        pytest.param("", "a1 a2", DEFAULT, "a1 a2 | ", id="there is room for all"),
        pytest.param("", "a1 a2 a3 a4 a5", DEFAULT, "a1 a2 a3 a4 | a5", id="four per namespace"),
        pytest.param("aaa", "a1 a2", DEFAULT, "a1 | a2", id="those that run count"),
        pytest.param("aaaa", "a1 b1", DEFAULT, "b1 | a1", id="a full namespace holds up no other"),
        pytest.param("aaaaaaa", "a1", DEFAULT, " | a1", id="more run than the limit is now"),
        pytest.param(
            "aaaabbbbcc", "c1 d1", DEFAULT, " | d1 c1", id="the cluster is full; the fairer is next"
        ),
        pytest.param("aaaabbbbc", "a1 c1 d1", DEFAULT, "d1 | c1 a1", id="one is free"),
        pytest.param("", "a1 a2[5] a3[-1] a4[5]", Limits(1), "a2 | a4 a1 a3", id="priority, age"),
        pytest.param(
            "", "a1[9] a2[9] a3[9] b1", Limits(2), "a1 b1 | a2 a3", id="no priority beats fairness"
        ),
        pytest.param("", "a1 a2 a3 b1[5]", Limits(1), "b1 | a1 a2 a3", id="but it breaks a tie"),
        pytest.param("aab", "a1 b1 b2 b3", Limits(4), "b1 | a1 b2 b3", id="by what runs already"),
        pytest.param("aaaa", "a1 a2", Limits(), "a1 a2 | ", id="no limits"),
        pytest.param("aaaa", "a1 b1", Limits(5), "b1 | a1", id="no limit per namespace"),
        pytest.param("aaaa", "a1 b1", Limits(None, 4), "b1 | a1", id="no limit per cluster"),
    ],
)
def test_the_queue_admits_in_order(
    loading: str, waiting: str, limits: Limits, expected: str
) -> None:
    """`expected` has the models that are admitted, `|`, and the models that wait, both in order.

    `loading` has the letter of the namespace of each running load.
    """
    now, later = queue.admit(loading, models(waiting), limits)
    assert " | ".join(" ".join(one.uid for one in part) for part in (now, later)) == expected


LETTERS = st.text("abc", max_size=12)


@given(
    loading=LETTERS,
    words=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1)), max_size=20),
    cluster=st.none() | st.integers(1, 12),
    namespace=st.none() | st.integers(1, 5),
)
def test_the_queue_uses_its_limits_fully_and_never_exceeds_them(
    loading: str, words: list[tuple[str, int]], cluster: int | None, namespace: int | None
) -> None:
    """A model waits only if a limit requires it, and no model is lost."""
    waiting = models(" ".join(f"{space}{at}[{rank}]" for at, (space, rank) in enumerate(words)))
    now, later = queue.admit(loading, waiting, Limits(cluster, namespace))
    assert sorted(one.uid for one in now + later) == sorted(one.uid for one in waiting)
    total = len(loading) + len(now)
    spaces = loading + "".join(one.namespace for one in now)
    if now:
        assert cluster is None or total <= cluster
    for one in now:
        assert namespace is None or spaces.count(one.namespace) <= namespace
    for one in later:
        full = cluster is not None and total >= cluster
        assert full or (namespace is not None and spaces.count(one.namespace) >= namespace)


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (1, "position 1 in the queue"),
        (3, "position 3 in the queue"),
        (4, "among the next 5 in the queue"),
        (10, "among the next 10 in the queue"),
        (11, "among the next 20 in the queue"),
        (4321, "among the next 5000 in the queue"),
        (20_000, "among the next 20000 in the queue"),
    ],
)
def test_a_position_is_shown_in_steps(position: int, text: str) -> None:
    """Positions are rounded, so that they change, and the status is written, less often."""
    assert queue.describe_position(queue.shown_position(position)) == text


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        pytest.param(Settings(), Limits(10, 4), id="default"),
        pytest.param(Settings(max_loads=0, max_loads_per_namespace=0), Limits(), id="0 is none"),
        pytest.param(
            Settings(loader=LoaderSettings(kueue_queue="gpus")), Limits(), id="Kueue's business"
        ),
    ],
)
def test_the_limits_of_the_queue_come_from_the_settings(settings: Settings, limits: Limits) -> None:
    """A Kueue queue turns the operator's own limits off."""
    assert Limits.from_settings(settings) == limits
