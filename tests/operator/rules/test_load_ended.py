"""Rules for a loader Job that has ended: publish its result or report its failure."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sd_api.reasons import Reason
from sd_operator.resources.observed import (
    ContainerView,
    Delivery,
    Outcome,
)
from sd_operator.rules.decision import Wait
from tests.support.rules.decisions import (
    COMPLETE,
    FAILED,
    HOOK,
    OTHER,
    Case,
    act,
    by_id,
    decided,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import (
    LOADED,
    NOW,
    answered,
    claim,
    ended,
    failed,
    job,
    job_status,
    loading,
    model,
    pod,
    published,
    running,
    stalled,
)

EPOCH = datetime.fromtimestamp(0, UTC)

CASES = [
    Case(
        id="node lost: the Pod that has ended has the result",
        model=model(loading()),
        observed=observed(
            job(COMPLETE),
            pods=(
                pod(job(), running("convert"), age=900),
                pod(job(), answered("convert", LOADED), age=9, phase="Succeeded"),
            ),
        ),
        rule="load_job_succeeded",
        phase="Ready",
        ready="Loaded",
        events=("ModelLoaded",),
        message="sketch is published on claim models",
    ),
    Case(
        id="node lost: no other load starts while the Pod may write",
        model=model(published(OTHER)),
        observed=observed(
            job(COMPLETE, load_hash=OTHER),
            pods=(pod(job(COMPLETE, load_hash=OTHER), running("convert"), deleting=True),),
            fresh=True,
        ),
        rule="previous_load_is_running",
        phase="Ready",
        ready="Loaded",
        message="waiting for the previous load to stop: Pod POD is stopping",
    ),
    Case(
        id="out of memory",
        model=model(loading()),
        observed=with_pod(
            job(FAILED, failure="BackoffLimitExceeded"),
            ContainerView("convert", "terminated", "OOMKilled", 137),
            fresh=True,
        ),
        rule="load_job_failed",
        phase="Failed",
        ready="not OutOfMemory",
        stalled="OutOfMemory",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "container convert of Pod POD ran out of memory",
            Reason.OUT_OF_MEMORY,
            "The next attempt is at 2026-01-02T03:05:04Z.",
        ),
    ),
    Case(
        id="loaded",
        model=model(loading()),
        observed=with_pod(job(COMPLETE), answered("convert", LOADED)),
        rule="load_job_succeeded",
        phase="Ready",
        ready="Loaded",
        events=("ModelLoaded",),
        message="sketch is published on claim models",
    ),
    Case(
        id="started by Kueue and loaded while the operator was away",
        model=model({"job": job_status()}),
        observed=with_pod(job(COMPLETE), answered("convert", LOADED)),
        rule="load_job_succeeded",
        phase="Ready",
        ready="Loaded",
        events=("LoadStarted", "ModelLoaded"),
        message="sketch is published on claim models",
    ),
    Case(
        id="loaded onto a claim that was replaced since",
        model=model(loading()),
        observed=with_pod(
            job(COMPLETE),
            answered("convert", LOADED),
            claim=claim(uid="another"),
            fresh=True,
        ),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="loaded, and the clock was set back behind the creation of the claim",
        model=model(loading()),
        observed=with_pod(job(COMPLETE, created=EPOCH), answered("convert", LOADED)),
        rule="load_job_succeeded",
        phase="Ready",
        ready="Loaded",
        events=("ModelLoaded",),
        message="sketch is published on claim models",
    ),
    Case(
        id="started by Kueue, result lost: the next Job has another name",
        model=model({"job": job_status()}),
        observed=observed(job(COMPLETE), fresh=True),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="complete, Pod not seen yet",
        model=model(loading()),
        observed=observed(job(COMPLETE)),
        rule="job_result_is_missing",
        does="wait",
        message="waiting for the result of Job JOB",
    ),
    Case(
        id="complete, Pod's end not seen yet",
        model=model(loading()),
        observed=with_pod(job(COMPLETE, ended_ago=9), running("convert")),
        rule="job_result_is_missing",
        does="wait",
        message="waiting for the result of Job JOB",
    ),
    Case(
        id="complete, Pod's end was missed",
        model=model(loading()),
        observed=with_pod(job(COMPLETE, ended_ago=10), running("convert")),
        rule="job_result_is_missing",
        does="refresh",
        message="waiting for the result of Job JOB",
    ),
    Case(
        id="complete, in the future by our clock",
        model=model(loading()),
        observed=observed(job(COMPLETE, ended_ago=-1)),
        rule="job_result_is_missing",
        does="refresh",
        message="waiting for the result of Job JOB",
    ),
    Case(
        id="complete, Pod ended without a result",
        model=model(loading()),
        observed=with_pod(job(COMPLETE), ContainerView("convert", "terminated"), phase="Succeeded"),
        rule="job_result_is_missing",
        does="refresh",
        message="waiting for the result of Job JOB",
    ),
    Case(
        id="result lost: the next Job finds the receipt",
        model=model(loading()),
        observed=observed(job(COMPLETE), fresh=True),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="complete with a malformed result",
        model=model(loading()),
        observed=with_pod(job(COMPLETE), ended("convert", "{}"), fresh=True),
        rule="load_job_succeeded",
        phase="Failed",
        ready="not LoaderCrashed",
        stalled="LoaderCrashed",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "Job JOB succeeded but its loader reported no result",
            Reason.LOADER_CRASHED,
            "The next attempt is at 2026-01-02T03:05:04Z.",
        ),
    ),
    Case(
        id="the loader reports the reason",
        model=model(loading()),
        observed=with_pod(job(FAILED), answered("fetch", failed(Reason.DIGEST_MISMATCH))),
        rule="load_job_failed",
        phase="Failed",
        ready="not DigestMismatch",
        stalled="DigestMismatch",
        events=("ModelLoadFailed",),
        message=with_remedy("what and where", Reason.DIGEST_MISMATCH),
    ),
    Case(
        id="the same failure again: no Event",
        model=model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None}),
        observed=with_pod(job(FAILED, attempt=1), answered("fetch", failed(Reason.RATE_LIMITED))),
        rule="load_job_failed",
        phase="Failed",
        ready="not RateLimited",
        stalled="RateLimited",
        message=with_remedy(
            "what and where", Reason.RATE_LIMITED, "The next attempt is at 2026-01-02T03:06:04Z."
        ),
    ),
    Case(
        id="another failure: an Event",
        model=model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None}),
        observed=with_pod(job(FAILED, attempt=1), answered("fetch", failed(Reason.NOT_A_MODEL))),
        rule="load_job_failed",
        phase="Failed",
        ready="not NotAModel",
        stalled="NotAModel",
        events=("ModelLoadFailed",),
        message=with_remedy("what and where", Reason.NOT_A_MODEL),
    ),
    Case(
        id="failed, Pods not seen yet",
        model=model(loading()),
        observed=observed(job(FAILED, failure="BackoffLimitExceeded")),
        rule="job_result_is_missing",
        does="wait",
        message="waiting for the result of Job JOB",
    ),
    Case(
        id="failed, Pods are gone",
        model=model(loading()),
        observed=observed(job(FAILED, failure="BackoffLimitExceeded", ended_ago=10)),
        rule="job_result_is_missing",
        does="refresh",
        message="waiting for the result of Job JOB",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_the_outcome_of_a_load_is_reported(case: Case) -> None:
    """Each row has an ended Job with its Pods, and the status and Events that report it."""
    case.check()


def test_the_operator_waits_for_the_result_of_an_ended_job() -> None:
    """The outcome of a webhook call is recorded together with the result."""
    done = job(COMPLETE, ended_ago=4)
    delivery = Delivery("id", Outcome.DELIVERED, "", NOW)
    resource = model(loading(), webhook=HOOK)
    waiting = decided(resource, with_pod(done, running("convert"), deliveries=(delivery,)))
    assert waiting.decision == Wait(f"waiting for the result of Job {done.name}", 6)
    seen = with_pod(done, answered("convert", LOADED), deliveries=(delivery,))
    assert act(resource, seen).recorded == (delivery,)


@pytest.mark.parametrize("rendered", [True, False])
def test_the_path_of_a_preview_is_the_operators_own(rendered: bool) -> None:
    """The status has the computed path of a preview if the result states that one exists."""
    result = LOADED.model_copy(update={"preview": rendered, "picture": rendered})
    seen = with_pod(job(COMPLETE), answered("convert", result))
    artifact = act(model(loading()), seen).status.artifact
    assert artifact is not None
    expected = f"{artifact.immutable_path}/preview.png" if rendered else None
    assert artifact.preview_path == expected
    expected = f"{artifact.immutable_path}/picture.jpg" if rendered else None
    assert artifact.picture_path == expected
