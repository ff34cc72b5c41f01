"""Finds, sets and removes a condition in a list, and fits a message into its limit. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.status import Condition, ConditionType

Conditions = Sequence[Condition]


def find(conditions: Conditions, kind: ConditionType) -> Condition | None:
    """Return the condition of this type; None if it is absent."""
    return next((condition for condition in conditions if condition.type == kind), None)


def put(conditions: Conditions, new: Condition) -> list[Condition]:
    """Return the conditions with `new` in place of the condition of its type.

    lastTransitionTime is kept if the condition's status is the same as before.
    """
    old = next((condition for condition in conditions if condition.type == new.type), None)
    if old is None:
        return [*conditions, new]
    if old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    return [new if condition.type == new.type else condition for condition in conditions]


def drop(conditions: Conditions, kind: ConditionType) -> list[Condition]:
    """Return the conditions without the condition of this type."""
    return [condition for condition in conditions if condition.type != kind]


def fit(cause: str, remedy: str = "", limit: int = TEXT_MAX_LENGTH) -> str:
    """Join cause and remedy; if the message is too long, cut the cause and keep the remedy."""
    tail = f" {remedy}" if remedy else ""
    room = limit - len(tail)
    return (cause if len(cause) <= room else cause[: room - 1] + "…") + tail
