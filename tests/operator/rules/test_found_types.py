"""A spec without modelType: the type in the status, and a type that is added or deleted later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sd_api.reasons import Reason
from sd_api.status import ConditionType, OutboxEntry, Status, WebhookEvent
from sd_operator.base.metrics import Metrics
from sd_operator.reconciler import delivery, measure
from sd_operator.rules import conditions
from sd_operator.rules.decision import LoadOutcome
from tests.support.rules.decisions import COMPLETE, FAILED, act, decided, observed, with_pod
from tests.support.rules.observed import (
    LOADED,
    answered,
    failed,
    job,
    loading,
    model,
    published,
    stalled,
)

LORA = LOADED.model_copy(
    update={
        "artifact": LOADED.artifact and LOADED.artifact.model_copy(update={"model_type": "lora"})
    }
)


def shown(status: Status) -> tuple[Any, Any, bytes]:
    """Return the model type in the status, in the metric and in the body of a webhook call."""
    entry = OutboxEntry(
        id="1", event=WebhookEvent.LOADED, load_hash="0" * 16, created_time="2026-01-01T00:00:00Z"
    )
    metrics = Metrics()
    measure.count(metrics, "art", status, LoadOutcome("loaded", "", (), 0))
    [sample] = [
        sample
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name.endswith("loads_total")
    ]
    payload = delivery.payload(model(), status, entry)
    return status.model_type, payload["model"]["model_type"], sample.labels["model_type"]


def test_type_is_unknown_until_a_load_has_found_it() -> None:
    """Status, metric and webhook show `unknown` before the load, and the found type after it."""
    before = act(model(), observed()).status
    assert shown(before) == ("unknown",) * 3
    after = act(model(loading()), with_pod(job(COMPLETE), answered("convert", LORA))).status
    assert shown(after) == ("lora",) * 3


def test_type_of_the_spec_is_shown_at_once() -> None:
    """Before any load, status, metric and webhook show the type of spec.modelType."""
    assert shown(act(model(modelType="vae"), observed()).status) == ("vae",) * 3


def test_type_that_contradicts_the_published_version_is_refused() -> None:
    """The loadHash is the same with and without the type, so no load would find the mistake."""
    status = published(modelType="lora")
    given = act(model(status, modelType="custom_ckpt", generation=2), observed())
    condition = conditions.find(given.status.conditions, ConditionType.STALLED)
    assert condition is not None
    assert condition.reason == Reason.INVALID_SPEC
    assert "the source is of type lora" in condition.message
    assert given.job is None
    assert decided(model(status), observed()).rule == "wanted_version_is_published"


def test_deleting_a_wrong_type_loads_at_once() -> None:
    """The load is retried at once after the type is deleted, although the loadHash is the same."""
    status = stalled(Reason.UNSUPPORTED_FORMAT)
    assert decided(model(status, modelType="custom_ckpt"), observed()).rule == "last_load_failed"
    assert decided(model(status, generation=2), observed()).rule == "load_is_due"


def test_deleting_a_wrong_type_during_the_load_loads_again() -> None:
    """The failure is recorded for the Job's generation, so the edited spec is loaded again."""
    loads = replace(job(FAILED), generation=1)
    result = failed(Reason.UNSUPPORTED_FORMAT, "the file is a LoRA")
    after = act(model(loading(), generation=2), with_pod(loads, answered("fetch", result))).status
    condition = conditions.find(after.conditions, ConditionType.STALLED)
    assert condition is not None
    assert condition.observed_generation == 1
    raw = after.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert decided(model(raw, generation=2), observed(loads)).rule == "load_is_due"


@pytest.mark.parametrize("reason", [Reason.UNSAFE_MODEL, Reason.NOT_A_MODEL, Reason.RATE_LIMITED])
def test_edit_of_any_field_retries_a_failed_load(reason: Reason) -> None:
    """After a failed load, an edit of any field of the spec starts another load at once."""
    assert decided(model(stalled(reason), generation=2), observed()).rule == "load_is_due"
