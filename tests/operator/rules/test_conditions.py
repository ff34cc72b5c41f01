from __future__ import annotations

import pytest

from sd_api.status import Condition, ConditionType
from sd_operator.rules import conditions


def condition(status: str = "True", at: str = "2026-01-01T00:00:00Z", **fields: str) -> Condition:
    """Return a Ready condition."""
    return Condition.model_validate(
        {"type": "Ready", "status": status, "reason": "Word", "lastTransitionTime": at, **fields}
    )


def test_a_new_condition_is_added() -> None:
    """The new condition follows the existing conditions."""
    other = condition(type="Stalled")
    assert conditions.put([other], condition()) == [other, condition()]


def test_the_transition_time_stays_while_the_status_stays() -> None:
    """A new reason or message alone is not a transition."""
    new = condition(at="2026-02-02T00:00:00Z", message="news")
    (result,) = conditions.put([condition()], new)
    assert (result.message, result.last_transition_time) == ("news", "2026-01-01T00:00:00Z")


def test_the_transition_time_moves_with_the_status() -> None:
    """The change from True to False is a transition."""
    new = condition("False", at="2026-02-02T00:00:00Z")
    assert conditions.put([condition()], new) == [new]


def test_a_condition_is_dropped_if_it_is_present() -> None:
    """Dropping a missing condition changes nothing."""
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
    """Only the cause is cut, because the reader needs the remedy."""
    assert conditions.fit(cause, remedy, limit=18) == message
