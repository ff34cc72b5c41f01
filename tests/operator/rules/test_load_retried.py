"""Rules after a load failed or its Job was deleted: whether and when to retry."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sd_api import names
from sd_api.reasons import Reason
from sd_operator.resources.observed import Rejection
from tests.support.rules.decisions import (
    FAILED,
    Case,
    by_id,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import (
    NOW,
    job,
    job_status,
    loading,
    model,
    running,
    stalled,
    without_uid,
)

CASES = [
    Case(
        id="only a change helps",
        model=model(stalled(Reason.NOT_A_MODEL, ended_ago=9_999_999)),
        observed=observed(job(FAILED)),
        rule="last_load_failed",
        phase="Failed",
        ready="not NotAModel",
        stalled="NotAModel",
        message=with_remedy("it failed", Reason.NOT_A_MODEL),
    ),
    Case(
        id="the reload annotation is a change",
        model=model(stalled(Reason.UNSAFE_MODEL), annotations={names.ANNOTATION_RELOAD: "1"}),
        observed=observed(job(FAILED)),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="not yet time to retry",
        model=model(stalled(Reason.RATE_LIMITED, ended_ago=59)),
        observed=observed(job(FAILED)),
        rule="last_load_failed",
        phase="Failed",
        ready="not RateLimited",
        stalled="RateLimited",
        message=with_remedy("it failed", Reason.RATE_LIMITED),
    ),
    Case(
        id="time to retry",
        model=model(stalled(Reason.RATE_LIMITED, ended_ago=60)),
        observed=observed(job(FAILED)),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        stalled="RateLimited",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="growing intervals",
        model=model(stalled(Reason.RATE_LIMITED, attempt=3, ended_ago=8 * 60 - 1)),
        observed=observed(),
        rule="last_load_failed",
        phase="Failed",
        ready="not RateLimited",
        stalled="RateLimited",
        message=with_remedy("it failed", Reason.RATE_LIMITED),
    ),
    Case(
        id="the missing claim was created",
        model=model(stalled(Reason.CLAIM_NOT_FOUND) | {"loadHash": None, "job": None}),
        observed=observed(),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="Job not seen",
        model=model(loading()),
        observed=observed(),
        rule="load_job_was_deleted",
        does="refresh",
        message="Job JOB is not in the cache",
    ),
    Case(
        id="Job gone",
        model=model(loading()),
        observed=observed(fresh=True),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="uid not recorded: the same attempt finds the running Job",
        model=model(loading() | {"job": without_uid(job_status())}),
        observed=observed(unrecorded=(job(),)),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="uid of a later attempt not recorded: no pause, because the Job may run",
        model=model(loading(attempt=2) | {"job": without_uid(job_status(2))}),
        observed=observed(unrecorded=(job(attempt=2),)),
        rule="load_is_due",
        does="create load 2",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="uid not recorded, and the load failed: retried under the same name",
        model=model(
            stalled(Reason.RATE_LIMITED, ended_ago=60) | {"job": without_uid(job_status())}
        ),
        observed=observed(),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        stalled="RateLimited",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="uid not recorded, and another Job holds the name: the next attempt",
        model=model(loading() | {"job": without_uid(job_status())}),
        observed=observed(
            rejection=Rejection("it exists", 409, NOW - timedelta(seconds=30), attempt=0)
        ),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="Jobs are deleted repeatedly: growing intervals",
        model=model(loading(attempt=2, started_ago=100)),
        observed=observed(fresh=True),
        rule="load_job_was_deleted",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was deleted before it ended; the load is retried later",
    ),
    Case(
        id="Job being deleted: its Pod must stop first",
        model=model(loading()),
        observed=with_pod(job(deleting=True), running("fetch"), fresh=True),
        rule="previous_load_is_running",
        phase="Pending",
        ready="not Pending",
        message="waiting for the previous load to stop: Pod POD is stopping",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_load_is_retried(case: Case) -> None:
    """The failure's reason decides whether a load is retried. The pause grows with each attempt."""
    case.check()
