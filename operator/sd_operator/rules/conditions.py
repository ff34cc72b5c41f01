"""The list of metav1.Conditions: pure look-up, set and removal."""

from __future__ import annotations

from collections.abc import Sequence

from sd_api.fields import TEXT_MAX_LENGTH
from sd_api.status import Condition, ConditionType

Conditions = Sequence[Condition]


def find(conditions: Conditions, kind: ConditionType) -> Condition | None:
    """The condition of this type."""
    return next((one for one in conditions if one.type == kind), None)


def put(conditions: Conditions, new: Condition) -> list[Condition]:
    """Set a condition; lastTransitionTime moves only when the condition's status changes."""
    old = next((one for one in conditions if one.type == new.type), None)
    if len(new.message) > TEXT_MAX_LENGTH:
        cut = new.message[: TEXT_MAX_LENGTH - 1] + "…"
        new = new.model_copy(update={"message": cut})
    if old is None:
        return [*conditions, new]
    if old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    return [new if one.type == new.type else one for one in conditions]


def drop(conditions: Conditions, kind: ConditionType) -> list[Condition]:
    """Remove a condition, where it is present."""
    return [one for one in conditions if one.type != kind]
