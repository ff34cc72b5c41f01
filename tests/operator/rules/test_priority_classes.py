"""Which PriorityClasses a model's Job may have: only those that the administrator allows."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_api.spec import JobOverrides
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules.decision import CreateJob
from tests.support.rules.decisions import (
    Case,
    act,
    by_id,
    decided,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import job, loading, model, published, running, stalled

CRITICAL = {"priorityClassName": "system-node-critical"}
CAUSE = "spec.job.priorityClassName: PriorityClass system-node-critical is not allowed for loads"
MESSAGE = with_remedy(CAUSE, Reason.PRIORITY_CLASS_NOT_ALLOWED)

CASES = [
    Case(
        id="new model: no finalizer, no Job, no place in the queue",
        model=model(finalizer=False, job=CRITICAL),
        observed=observed(admitted=False),
        rule="priority_class_is_not_allowed",
        phase="Pending",
        ready="not PriorityClassNotAllowed",
        stalled="PriorityClassNotAllowed",
        events=("ModelLoadFailed",),
        message=MESSAGE,
    ),
    Case(
        id="published model: nothing is to be done",
        model=model(published(), job=CRITICAL),
        observed=observed(),
        rule="wanted_version_is_published",
        phase="Ready",
        ready="Loaded",
        message="sketch is published on claim models",
    ),
    Case(
        id="running load: it goes on",
        model=model(loading(), job=CRITICAL),
        observed=with_pod(job(), running("fetch")),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="corrected after a failure: it is loaded",
        model=model(stalled(Reason.PRIORITY_CLASS_NOT_ALLOWED)),
        observed=observed(),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_no_priority_class_is_allowed_by_default(case: Case) -> None:
    """Without an allowed list, a model whose spec.job names a PriorityClass is not loaded.

    A load with a PriorityClass could preempt other people's Pods.
    """
    case.check()


@pytest.mark.parametrize(
    "loader",
    [
        pytest.param(LoaderSettings(priority_classes=frozenset({"batch"})), id="listed"),
        pytest.param(
            LoaderSettings(placement=JobOverrides(priority_class_name="batch")), id="the default"
        ),
    ],
)
def test_an_allowed_class_is_used(loader: LoaderSettings) -> None:
    """The Job of a model with an allowed PriorityClass has this class."""
    settings = Settings(loader=loader)
    action = act(model(job={"priorityClassName": "batch"}), observed(), settings).job
    assert isinstance(action, CreateJob)
    assert action.job.overrides == JobOverrides(priority_class_name="batch")
    refused = decided(model(job=CRITICAL), observed(), settings)
    assert refused.rule == "priority_class_is_not_allowed"


def test_forbidden_overrides_are_ignored_as_a_whole() -> None:
    """If the settings forbid overrides, spec.job is ignored, and the model is loaded."""
    settings = Settings(loader=LoaderSettings(allow_overrides=False))
    assert decided(model(job=CRITICAL), observed(), settings).rule == "load_is_due"
