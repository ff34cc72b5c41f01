"""Rules while a loader Job runs: its phase, and why its Pod does not start."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_api.wire import LoadResult, Progress, Stage
from sd_operator.resources.observed import (
    ContainerView,
)
from tests.support.rules.decisions import (
    Case,
    by_id,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import (
    LOADED,
    answered,
    job,
    loading,
    model,
    pod,
    running,
    stalled,
)

CASES = [
    Case(
        id="no Pod yet",
        model=model(loading()),
        observed=observed(job()),
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="Job created, status not written: the request is repeated and finds the Job",
        model=model(),
        observed=observed(unrecorded=(job(),)),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="fetch runs",
        model=model(loading()),
        observed=with_pod(job(), running("fetch")),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="fetched",
        model=model(loading()),
        observed=with_pod(job(), answered("fetch", LoadResult(outcome="fetched"))),
        rule="load_job_is_running",
        phase="Converting",
        ready="not Converting",
        reconciling="Converting",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="Job counts a ready Pod",
        model=model(loading()),
        observed=observed(job(ready=1)),
        rule="load_job_is_running",
        phase="Converting",
        ready="not Converting",
        reconciling="Converting",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="the loader verifies",
        model=model(loading()),
        observed=with_pod(job(), running("convert"), progress=Progress(stage=Stage.VERIFYING)),
        rule="load_job_is_running",
        phase="Verifying",
        ready="not Verifying",
        reconciling="Verifying",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="the Pod succeeded, the Job has not ended yet",
        model=model(loading()),
        observed=with_pod(job(), answered("convert", LOADED), phase="Succeeded"),
        rule="load_job_is_running",
        does="wait",
        message="Job JOB is ending",
    ),
    Case(
        id="unscheduled for less than 15 minutes",
        model=model(loading()),
        observed=with_pod(job(), unscheduled="0/3 nodes", age=899),
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Pod POD is waiting for a node: 0/3 nodes",
    ),
    Case(
        id="unscheduled for 15 minutes",
        model=model(loading()),
        observed=with_pod(job(), unscheduled="0/3 nodes", age=900),
        rule="load_job_is_running",
        phase="Pending",
        ready="not Unschedulable",
        reconciling="Unschedulable",
        stalled="Unschedulable",
        events=("ModelLoadFailed",),
        message=with_remedy("Pod POD is waiting for a node: 0/3 nodes", Reason.UNSCHEDULABLE),
    ),
    Case(
        id="image not pulled for 15 minutes",
        model=model(loading()),
        observed=with_pod(job(), ContainerView("fetch", reason="ImagePullBackOff"), age=900),
        rule="load_job_is_running",
        phase="Pending",
        ready="not ImagePullFailed",
        reconciling="ImagePullFailed",
        stalled="ImagePullFailed",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "Pod POD is waiting for its image: ImagePullBackOff", Reason.IMAGE_PULL_FAILED
        ),
    ),
    Case(
        id="quota rejects the Pod",
        model=model(loading()),
        observed=observed(job(), job_warning="pods is forbidden: exceeded quota: gpu"),
        rule="load_job_is_running",
        phase="Pending",
        ready="not QuotaExceeded",
        reconciling="QuotaExceeded",
        stalled="QuotaExceeded",
        events=("ModelLoadFailed",),
        message=with_remedy("pods is forbidden: exceeded quota: gpu", Reason.QUOTA_EXCEEDED),
    ),
    Case(
        id="scheduled after a long wait",
        model=model(stalled(Reason.UNSCHEDULABLE) | {"completionTime": None}),
        observed=with_pod(job(), running("fetch")),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="retry: the last failure stays in Stalled",
        model=model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None}),
        observed=with_pod(job(attempt=1), running("fetch")),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        stalled="RateLimited",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="running, although the status has an end",
        model=model(stalled(Reason.CLAIM_NOT_FOUND)),
        observed=observed(job()),
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="Pod evicted",
        model=model(loading()),
        observed=with_pod(job(), phase="Failed", reason="Evicted"),
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Pod POD ended (Evicted); Job JOB is about to create another Pod",
    ),
    Case(
        id="node lost: the newer of two running Pods counts",
        model=model(loading()),
        observed=observed(
            job(),
            pods=(pod(job(), running("convert"), age=900), pod(job(), running("fetch"), age=9)),
        ),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_running_load_is_reported(case: Case) -> None:
    """Phase, conditions and progress follow from the Job, its newest Pod and the Pod's log."""
    case.check()
