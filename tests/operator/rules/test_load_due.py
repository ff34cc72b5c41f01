"""Rules before a load: which models get a Job, which must wait, which cannot be loaded."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sd_api.reasons import Reason
from sd_operator.base import times
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.resources.observed import (
    Rejection,
)
from sd_operator.rules.decision import CreateJob
from sd_operator.rules.status import with_created_job
from tests.support.rules.decisions import (
    Case,
    act,
    by_id,
    decided,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import (
    NOW,
    claim,
    job,
    job_status,
    loading,
    model,
    published,
    running,
    stalled,
)

CASES = [
    Case(
        id="new model",
        model=model(finalizer=False),
        observed=observed(),
        rule="finalizer_is_missing",
        does="add finalizer",
        message="the load is about to start",
    ),
    Case(
        id="new model with our finalizer",
        model=model(),
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
        id="no claim: no finalizer, no Job",
        model=model(finalizer=False),
        observed=observed(claim=None),
        rule="claim_does_not_exist",
        phase="Pending",
        ready="not ClaimNotFound",
        stalled="ClaimNotFound",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "PersistentVolumeClaim models does not exist in namespace art", Reason.CLAIM_NOT_FOUND
        ),
    ),
    Case(
        id="claim deleted",
        model=model(finalizer=False),
        observed=observed(claim=claim(deleting=True)),
        rule="claim_does_not_exist",
        phase="Pending",
        ready="not ClaimNotFound",
        stalled="ClaimNotFound",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "PersistentVolumeClaim models is being deleted in namespace art", Reason.CLAIM_NOT_FOUND
        ),
    ),
    Case(
        id="spec that a newer CRD allows",
        model=model(revision="fp17"),
        observed=observed(),
        rule="spec_is_invalid",
        phase="Failed",
        ready="not InvalidSpec",
        stalled="InvalidSpec",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "spec.revision: Input should be 'fp16', 'fp32' or 'bf16'", Reason.INVALID_SPEC
        ),
    ),
    Case(
        id="name too long",
        model=model(name="n" * 64),
        observed=observed(),
        rule="spec_is_invalid",
        phase="Failed",
        ready="not InvalidSpec",
        stalled="InvalidSpec",
        events=("ModelLoadFailed",),
        message=with_remedy("metadata.name is longer than 63 characters", Reason.INVALID_SPEC),
    ),
    Case(
        id="trained id without a template",
        model=model(url="trained-1", modelType="api_trained"),
        observed=observed(),
        rule="spec_is_invalid",
        phase="Failed",
        ready="not InvalidSpec",
        stalled="InvalidSpec",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "spec.url is the bare id of a trained model, and the operator has no link template"
            " for those (SD_OPERATOR_TRAINED_URL_TEMPLATE)",
            Reason.INVALID_SPEC,
        ),
    ),
    Case(
        id="url of another form",
        model=model(url="s3://bucket/model.ckpt"),
        observed=observed(),
        rule="spec_is_invalid",
        phase="Failed",
        ready="not InvalidSpec",
        stalled="InvalidSpec",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "spec.url is in an object store, which the loader does not read; give an https link to"
            " the file, for example a presigned one",
            Reason.INVALID_SPEC,
        ),
    ),
    Case(
        id="queued",
        model=model(),
        observed=observed(admitted=False),
        rule="model_is_not_admitted",
        does="enqueue",
        phase="Queued",
        ready="not Queued",
        message="waiting for other models to load",
    ),
    Case(
        id="queued: not even a finalizer yet",
        model=model(finalizer=False),
        observed=observed(admitted=False),
        rule="model_is_not_admitted",
        does="enqueue",
        phase="Queued",
        ready="not Queued",
        message="waiting for other models to load",
    ),
    Case(
        id="queued reload: served",
        model=model(published(), revision="fp16"),
        observed=observed(admitted=False),
        rule="model_is_not_admitted",
        does="enqueue",
        phase="Ready",
        ready="Loaded",
        message="waiting for other models to load",
    ),
    Case(
        id="queued for a retry: the last failure stays in Stalled",
        model=model(stalled(Reason.RATE_LIMITED, ended_ago=60)),
        observed=observed(admitted=False),
        rule="model_is_not_admitted",
        does="enqueue",
        phase="Queued",
        ready="not Queued",
        stalled="RateLimited",
        message="waiting for other models to load",
    ),
    Case(
        id="Job just rejected: other models go first",
        model=model(),
        observed=observed(
            admitted=False,
            rejection=Rejection("jobs.batch is forbidden: exceeded quota: jobs", 403, NOW),
        ),
        rule="load_job_was_rejected",
        phase="Pending",
        ready="not QuotaExceeded",
        stalled="QuotaExceeded",
        events=("ModelLoadFailed",),
        message=with_remedy("jobs.batch is forbidden: exceeded quota: jobs", Reason.QUOTA_EXCEEDED),
    ),
    Case(
        id="a smaller limit does not stop a running load",
        model=model(loading()),
        observed=with_pod(job(), running("fetch"), admitted=False),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="Kueue has not admitted the Job",
        model=model({"job": job_status()}),
        observed=observed(job(suspended=True)),
        rule="load_job_is_suspended",
        phase="Queued",
        ready="not Queued",
        message="Job JOB is waiting for spec.suspend to be set to false",
    ),
    Case(
        id="Kueue has stopped the Job",
        model=model(loading()),
        observed=observed(job(suspended=True)),
        rule="load_job_is_suspended",
        phase="Queued",
        ready="not Queued",
        message="Job JOB is waiting for spec.suspend to be set to false",
    ),
    Case(
        id="suspended by the user: the Job leaves Kueue's queue",
        model=model({"job": job_status()}, suspend=True),
        observed=observed(job(suspended=True)),
        rule="model_is_suspended",
        does="delete load 0",
        phase="Pending",
        ready="not Suspended",
        message="spec.suspend is true; set it to false to load",
    ),
    Case(
        id="credentials in the url",
        model=model(url="https://u:p@example.com/m.safetensors"),
        observed=observed(),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted", "CredentialsInUrl"),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="quota rejects the Job",
        model=model(),
        observed=observed(
            rejection=Rejection("jobs.batch is forbidden: exceeded quota: jobs", 403, NOW)
        ),
        rule="load_job_was_rejected",
        phase="Pending",
        ready="not QuotaExceeded",
        stalled="QuotaExceeded",
        events=("ModelLoadFailed",),
        message=with_remedy("jobs.batch is forbidden: exceeded quota: jobs", Reason.QUOTA_EXCEEDED),
    ),
    Case(
        id="invalid spec.job",
        model=model(),
        observed=observed(rejection=Rejection("spec.template: Invalid value", 422, NOW)),
        rule="load_job_was_rejected",
        phase="Failed",
        ready="not InvalidSpec",
        stalled="InvalidSpec",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "the API server rejects spec.job: spec.template: Invalid value", Reason.INVALID_SPEC
        ),
    ),
    Case(
        id="no permission",
        model=model(),
        observed=observed(rejection=Rejection("jobs.batch is forbidden", 403, NOW)),
        rule="load_job_was_rejected",
        phase="Pending",
        ready="not Pending",
        message="the loader Job cannot be created: jobs.batch is forbidden",
    ),
    Case(
        id="another Job holds the name",
        model=model(),
        observed=observed(rejection=Rejection("it is being deleted", 409, NOW, attempt=0)),
        rule="load_job_was_rejected",
        phase="Pending",
        ready="not Pending",
        message="the loader Job cannot be created: it is being deleted",
    ),
    Case(
        id="another Job held the name a while ago: the next attempt has another name",
        model=model(),
        observed=observed(
            rejection=Rejection("it is being deleted", 409, NOW - timedelta(seconds=30), attempt=0)
        ),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="rejected a while ago: retried",
        model=model(),
        observed=observed(rejection=Rejection("forbidden", 403, NOW - timedelta(seconds=30))),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_load_starts_or_waits(case: Case) -> None:
    """Each row has a model, the observed state, and the rule and decision that follow."""
    case.check()


KUEUE = Settings(loader=LoaderSettings(kueue_queue="gpus"))


def test_with_kueue_a_load_starts_when_kueue_admits_its_job() -> None:
    """Before Kueue admits the Job, LoadStarted is not emitted, and no load time is counted."""
    rule = decided(model(), observed(), KUEUE).rule
    queued = act(model(), observed(), KUEUE)
    assert rule == "load_is_due"
    assert isinstance(queued.job, CreateJob)
    assert queued.events == ()
    (ready,) = queued.status.conditions
    assert (queued.status.phase, ready.status, ready.reason) == ("Queued", "False", "Queued")
    job_name = queued.job.job.name
    assert ready.message == f"Job {job_name} is waiting for Kueue to admit it into queue gpus"
    assert (queued.status.load_hash, queued.status.start_time) == (None, None)
    created = with_created_job(queued.status, queued.job.job, job().uid)
    status = created.model_dump(mode="json", by_alias=True)
    still = act(model(status), observed(job(suspended=True)), KUEUE)
    assert still.status == created
    begun = NOW - timedelta(seconds=3)
    Case(
        id="admitted",
        model=model(status),
        observed=observed(job(started=begun)),
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ).check()
    admitted = act(model(status), observed(job(started=begun)), KUEUE)
    assert admitted.status.start_time == times.stamp(begun)


def test_the_position_in_the_queue_is_shown() -> None:
    """The message of Ready gives the position as a range."""
    (ready,) = act(model(), observed(admitted=False, position=5)).status.conditions
    assert ready.message == "among the next 5 in the queue"


def test_id_of_a_trained_model_may_make_a_long_link() -> None:
    """A load starts even if id and link template make a link longer than a spec.url may be.

    The loader makes the link; the request has only the id.
    """
    settings = Settings(trained_url_template="https://trainer.example.com/{id}")
    result = decided(model(url="t" * 2048, modelType="api_trained"), observed(), settings)
    assert result.rule == "load_is_due"
