"""What is done about a model that is to be loaded: one row per case of every rule."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sd_api import names
from sd_api.reasons import Reason
from sd_api.wire import LoadResult, Progress, Stage
from sd_operator.base import times
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.resources.model import Model
from sd_operator.resources.observed import ContainerView, Delivery, Observed, Outcome, Refusal
from sd_operator.rules.decide import plan
from tests.support.rules.decisions import (
    COMPLETE,
    FAILED,
    HOOK,
    OTHER,
    decide,
    observed,
    told,
    with_pod,
)
from tests.support.rules.observed import (
    LOADED,
    NOW,
    answered,
    claim,
    failed,
    job,
    loading,
    model,
    pod,
    published,
    running,
    stalled,
)

PENDING = "Pending, not Ready=Pending, Reconciling=Pending"
SERVED = "Ready, Ready=Loaded"
NO_CLAIM = (
    "the_claim_is_missing | Pending, not Ready=ClaimNotFound, Stalled=ClaimNotFound"
    " | ModelLoadFailed"
)
AWAITED = "its_answer_is_not_here | Pending, not Ready=Pending"
LOOKED_FOR = "its_answer_is_not_here | look | Pending, not Ready=Pending"
INVALID = "spec_is_invalid | Failed, not Ready=InvalidSpec, Stalled=InvalidSpec | ModelLoadFailed"

LIVING = [
    pytest.param(
        model(finalizer=False), observed(), "it_is_not_ours_yet | finalizer add", id="new model"
    ),
    pytest.param(
        model(),
        observed(),
        f"it_is_to_be_loaded | create load 0 | {PENDING} | LoadStarted",
        id="ours now",
    ),
    pytest.param(
        model(finalizer=False),
        observed(claim=None),
        NO_CLAIM,
        id="no claim: no finalizer, no Job",
    ),
    pytest.param(
        model(finalizer=False), observed(claim=claim(deleting=True)), NO_CLAIM, id="claim deleted"
    ),
    pytest.param(
        model(revision="fp17"),
        observed(),
        INVALID,
        id="spec that a newer CRD allows",
    ),
    pytest.param(
        model(name="n" * 64),
        observed(),
        INVALID,
        id="name too long",
    ),
    pytest.param(
        model(url="trained-1", modelType="api_trained"),
        observed(),
        INVALID,
        id="trained id without a template",
    ),
    pytest.param(
        model(),
        observed(admitted=False),
        "it_must_wait_its_turn | Queued, not Ready=Queued",
        id="queued",
    ),
    pytest.param(
        model(finalizer=False),
        observed(admitted=False),
        "it_must_wait_its_turn | Queued, not Ready=Queued",
        id="queued: not even a finalizer yet",
    ),
    pytest.param(
        model(published(), revision="fp16"),
        observed(admitted=False),
        "it_must_wait_its_turn | Ready, Ready=Loaded",
        id="queued reload: served",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, ended_ago=60)),
        observed(admitted=False),
        "it_must_wait_its_turn | Queued, not Ready=Queued, Stalled=RateLimited",
        id="queued for another attempt: the last failure stays said",
    ),
    pytest.param(
        model(),
        observed(
            admitted=False,
            refusal=Refusal("jobs.batch is forbidden: exceeded quota: jobs", 403, NOW),
        ),
        "the_job_was_refused | Pending, not Ready=QuotaExceeded, Stalled=QuotaExceeded"
        " | ModelLoadFailed",
        id="refused just now: it lets others go before it",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), running("fetch"), admitted=False),
        "the_job_is_running | Downloading, not Ready=Downloading, Reconciling=Downloading",
        id="what runs is not stopped by a smaller limit",
    ),
    pytest.param(
        model(),
        observed(job(suspended=True)),
        "the_job_waits_for_kueue | Queued, not Ready=Queued",
        id="Kueue has not let it begin",
    ),
    pytest.param(
        model(loading()),
        observed(job(suspended=True)),
        "the_job_waits_for_kueue | Queued, not Ready=Queued",
        id="Kueue has stopped it",
    ),
    pytest.param(
        model(suspend=True),
        observed(job(suspended=True)),
        "it_is_suspended | delete load 0 | Pending, not Ready=Suspended",
        id="suspended by its user: the Job leaves Kueue's queue",
    ),
    pytest.param(
        model(url="https://u:p@example.com/m.safetensors"),
        observed(),
        f"it_is_to_be_loaded | create load 0 | {PENDING} | LoadStarted, CredentialsInUrl",
        id="credentials in the url",
    ),
    # The Job runs.
    pytest.param(
        model(loading()), observed(job()), f"the_job_is_running | {PENDING}", id="no Pod yet"
    ),
    pytest.param(
        model(),
        observed(job()),
        f"the_job_is_running | {PENDING} | LoadStarted",
        id="Job made, status not written: adopted",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), running("fetch")),
        "the_job_is_running | Downloading, not Ready=Downloading, Reconciling=Downloading",
        id="fetch runs",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), answered("fetch", LoadResult(outcome="fetched"))),
        "the_job_is_running | Converting, not Ready=Converting, Reconciling=Converting",
        id="fetched",
    ),
    pytest.param(
        model(loading()),
        observed(job(ready=1)),
        "the_job_is_running | Converting, not Ready=Converting, Reconciling=Converting",
        id="Job counts a ready Pod",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), running("convert"), progress=Progress(stage=Stage.VERIFYING)),
        "the_job_is_running | Verifying, not Ready=Verifying, Reconciling=Verifying",
        id="the loader verifies",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), answered("convert", LOADED), phase="Succeeded"),
        "the_job_is_running | Pending, not Ready=Pending",
        id="the Pod has loaded it, the Job follows: nothing to tell yet",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), unscheduled="0/3 nodes", age=899),
        f"the_job_is_running | {PENDING}",
        id="unscheduled for less than 15 minutes",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), unscheduled="0/3 nodes", age=900),
        "the_job_is_running | Pending, not Ready=Unschedulable, Reconciling=Unschedulable,"
        " Stalled=Unschedulable | ModelLoadFailed",
        id="unscheduled for 15 minutes",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), ContainerView("fetch", reason="ImagePullBackOff"), age=900),
        "the_job_is_running | Pending, not Ready=ImagePullFailed, Reconciling=ImagePullFailed,"
        " Stalled=ImagePullFailed | ModelLoadFailed",
        id="image not pulled for 15 minutes",
    ),
    pytest.param(
        model(loading()),
        observed(job(), job_warning="pods is forbidden: exceeded quota: gpu"),
        "the_job_is_running | Pending, not Ready=QuotaExceeded, Reconciling=QuotaExceeded,"
        " Stalled=QuotaExceeded | ModelLoadFailed",
        id="quota refuses the Pod",
    ),
    pytest.param(
        model(stalled(Reason.UNSCHEDULABLE) | {"completionTime": None}),
        with_pod(job(), running("fetch")),
        "the_job_is_running | Downloading, not Ready=Downloading, Reconciling=Downloading",
        id="a node was found after all",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None}),
        with_pod(job(attempt=1), running("fetch")),
        "the_job_is_running | Downloading, not Ready=Downloading, Stalled=RateLimited,"
        " Reconciling=Downloading",
        id="tried again: the last failure stays said",
    ),
    pytest.param(
        model(stalled(Reason.CLAIM_NOT_FOUND)),
        observed(job()),
        f"the_job_is_running | {PENDING}",
        id="it runs, whatever the status says of its end",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(), phase="Failed", reason="Evicted"),
        f"the_job_is_running | {PENDING}",
        id="its Pod was evicted: another follows",
    ),
    pytest.param(
        model(loading()),
        observed(
            job(),
            pods=(pod(job(), running("convert"), age=900), pod(job(), running("fetch"), age=9)),
        ),
        "the_job_is_running | Downloading, not Ready=Downloading, Reconciling=Downloading",
        id="node lost: of two Pods alive the newer one counts",
    ),
    # The Job has ended.
    pytest.param(
        model(loading()),
        observed(
            job(COMPLETE),
            pods=(
                pod(job(), running("convert"), age=900),
                pod(job(), answered("convert", LOADED), age=9, phase="Succeeded"),
            ),
        ),
        f"the_job_succeeded | {SERVED} | ModelLoaded",
        id="node lost: the Pod that has ended answers",
    ),
    pytest.param(
        model(published(OTHER)),
        observed(
            job(COMPLETE, load_hash=OTHER),
            pods=(pod(job(COMPLETE, load_hash=OTHER), running("convert"), deleting=True),),
            fresh=True,
        ),
        "another_load_is_running | Ready, Ready=Loaded",
        id="node lost: no load begins while its Pod may write; served meanwhile",
    ),
    pytest.param(
        model(loading()),
        with_pod(
            job(FAILED, failure="BackoffLimitExceeded"),
            ContainerView("convert", "terminated", "OOMKilled", 137),
            fresh=True,
        ),
        "the_job_failed | Failed, not Ready=OutOfMemory, Stalled=OutOfMemory | ModelLoadFailed",
        id="out of memory",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(COMPLETE), answered("convert", LOADED)),
        f"the_job_succeeded | {SERVED} | ModelLoaded",
        id="loaded",
    ),
    pytest.param(
        model(),
        with_pod(job(COMPLETE), answered("convert", LOADED)),
        f"the_job_succeeded | {SERVED} | LoadStarted, ModelLoaded",
        id="loaded while the operator was away",
    ),
    pytest.param(
        model(loading()),
        with_pod(
            job(COMPLETE),
            answered("convert", LOADED),
            claim=claim(uid="another", created=NOW),
            fresh=True,
        ),
        f"it_is_to_be_loaded | create load 1 | {PENDING}",
        id="loaded onto a claim that was made anew since",
    ),
    pytest.param(
        model(loading()),
        observed(job(COMPLETE)),
        AWAITED,
        id="complete, Pod not seen yet",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(COMPLETE, ended_ago=9), running("convert")),
        AWAITED,
        id="complete, Pod's end not seen yet",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(COMPLETE, ended_ago=10), running("convert")),
        LOOKED_FOR,
        id="complete, Pod's end was missed",
    ),
    pytest.param(
        model(loading()),
        observed(job(COMPLETE, ended_ago=-1)),
        LOOKED_FOR,
        id="complete, by another clock",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(COMPLETE), ContainerView("convert", "terminated"), phase="Succeeded"),
        LOOKED_FOR,
        id="complete, Pod ended without an answer",
    ),
    pytest.param(
        model(loading()),
        observed(job(COMPLETE), fresh=True),
        f"it_is_to_be_loaded | create load 1 | {PENDING}",
        id="answer lost: again, for the receipt",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(COMPLETE), ContainerView("convert", "terminated", "", 0, "{}"), fresh=True),
        "the_job_succeeded | Failed, not Ready=LoaderCrashed, Stalled=LoaderCrashed"
        " | ModelLoadFailed",
        id="complete with a malformed answer",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(FAILED), answered("fetch", failed(Reason.DIGEST_MISMATCH))),
        "the_job_failed | Failed, not Ready=DigestMismatch, Stalled=DigestMismatch"
        " | ModelLoadFailed",
        id="the loader says why",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None}),
        with_pod(job(FAILED, attempt=1), answered("fetch", failed(Reason.RATE_LIMITED))),
        "the_job_failed | Failed, not Ready=RateLimited, Stalled=RateLimited",
        id="the same failure again: no Event",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, attempt=1) | {"completionTime": None}),
        with_pod(job(FAILED, attempt=1), answered("fetch", failed(Reason.NOT_A_MODEL))),
        "the_job_failed | Failed, not Ready=NotAModel, Stalled=NotAModel | ModelLoadFailed",
        id="another failure: an Event",
    ),
    pytest.param(
        model(loading()),
        observed(job(FAILED, failure="BackoffLimitExceeded")),
        AWAITED,
        id="failed, Pods not seen yet",
    ),
    pytest.param(
        model(loading()),
        observed(job(FAILED, failure="BackoffLimitExceeded", ended_ago=10)),
        LOOKED_FOR,
        id="failed, Pods are gone",
    ),
    # After a failure.
    pytest.param(
        model(stalled(Reason.NOT_A_MODEL, ended_ago=9_999_999)),
        observed(job(FAILED)),
        "it_failed_before | Failed, not Ready=NotAModel, Stalled=NotAModel",
        id="only a change helps",
    ),
    pytest.param(
        model(stalled(Reason.UNSAFE_MODEL), annotations={names.ANNOTATION_RELOAD: "1"}),
        observed(job(FAILED)),
        f"it_is_to_be_loaded | create load 0 | {PENDING} | LoadStarted",
        id="the reload annotation is a change",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, ended_ago=59)),
        observed(job(FAILED)),
        "it_failed_before | Failed, not Ready=RateLimited, Stalled=RateLimited",
        id="not yet time to try again",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, ended_ago=60)),
        observed(job(FAILED)),
        "it_is_to_be_loaded | create load 1 | Pending, not Ready=Pending, Stalled=RateLimited,"
        " Reconciling=Pending",
        id="time to try again",
    ),
    pytest.param(
        model(stalled(Reason.RATE_LIMITED, attempt=3, ended_ago=8 * 60 - 1)),
        observed(),
        "it_failed_before | Failed, not Ready=RateLimited, Stalled=RateLimited",
        id="ever more slowly",
    ),
    pytest.param(
        model(stalled(Reason.CLAIM_NOT_FOUND) | {"loadHash": None, "job": None}),
        observed(),
        f"it_is_to_be_loaded | create load 0 | {PENDING} | LoadStarted",
        id="the claim is there now",
    ),
    # Lost Jobs.
    pytest.param(
        model(loading()),
        observed(),
        "the_job_was_lost | look | Pending, not Ready=Pending",
        id="Job not seen",
    ),
    pytest.param(
        model(loading()),
        observed(fresh=True),
        f"it_is_to_be_loaded | create load 1 | {PENDING}",
        id="Job gone",
    ),
    pytest.param(
        model(loading(attempt=2, started_ago=100)),
        observed(fresh=True),
        f"the_job_was_lost | {PENDING}",
        id="Jobs are deleted again and again: slower",
    ),
    pytest.param(
        model(loading()),
        with_pod(job(deleting=True), running("fetch"), fresh=True),
        "another_load_is_running | Pending, not Ready=Pending",
        id="Job on its way out: its Pod ends first",
    ),
    # Reload.
    pytest.param(
        model(published(), revision="fp16"),
        observed(),
        "it_is_to_be_loaded | create load 0 | Pending, Ready=Loaded, Reconciling=Pending"
        " | LoadStarted",
        id="reload: the old version stays served",
    ),
    pytest.param(
        model(published(), revision="fp16"),
        with_pod(job(FAILED, load_hash=OTHER), answered("fetch", failed(Reason.NOT_A_MODEL))),
        "the_job_failed | Ready, Ready=Loaded, Stalled=NotAModel | LoadStarted, ModelLoadFailed",
        id="failed reload: Ready and Stalled",
    ),
    pytest.param(
        model(loading(load_hash=OTHER)),
        with_pod(job(load_hash=OTHER), running("fetch")),
        "another_load_is_running | delete load 0 | Pending, not Ready=Pending",
        id="changed in mid-load: the old Job is deleted",
    ),
    pytest.param(
        model(loading(load_hash=OTHER)),
        observed(pods=(pod(job(load_hash=OTHER), running("fetch")),)),
        "another_load_is_running | look | Pending, not Ready=Pending",
        id="its Pod may still write",
    ),
    pytest.param(
        model(published()),
        observed(job(load_hash=OTHER)),
        "another_load_is_running | delete load 0 | Ready, Ready=Loaded",
        id="changed and changed back in mid-load",
    ),
    pytest.param(model(published()), observed(), f"it_is_published | {SERVED}", id="nothing to do"),
    pytest.param(
        model(published()),
        with_pod(job(COMPLETE), answered("convert", LOADED)),
        f"it_is_published | {SERVED}",
        id="nothing to do while the Job is kept",
    ),
    # Suspend.
    pytest.param(
        model(suspend=True, finalizer=False),
        observed(),
        "it_is_suspended | Pending, not Ready=Suspended",
        id="suspended from the start",
    ),
    pytest.param(
        model(loading(), suspend=True),
        with_pod(job(), running("fetch")),
        "it_is_suspended | delete load 0 | Pending, not Ready=Suspended",
        id="suspend deletes the running Job",
    ),
    pytest.param(
        model(published(), suspend=True, revision="fp16"),
        observed(),
        "it_is_suspended | Ready, Ready=Loaded",
        id="suspended reload: served",
    ),
    pytest.param(
        model(published(), suspend=True), observed(), f"it_is_published | {SERVED}", id="loaded"
    ),
    pytest.param(
        model(stalled(Reason.UNSAFE_MODEL), suspend=True),
        observed(),
        "it_is_suspended | Pending, not Ready=Suspended, Stalled=UnsafeModel",
        id="suspended after a failure, which is not forgotten",
    ),
    # The claim.
    pytest.param(
        model(published()),
        observed(claim=None),
        NO_CLAIM,
        id="claim gone from under a loaded model",
    ),
    pytest.param(
        model(published()),
        observed(claim=claim(uid="another")),
        f"it_is_to_be_loaded | create load 1 | {PENDING}",
        id="claim made anew: loaded again",
    ),
    pytest.param(
        model(published()),
        with_pod(job(COMPLETE), answered("convert", LOADED), claim=claim(uid="another")),
        f"it_is_to_be_loaded | create load 1 | {PENDING}",
        id="the old Job's answer does not count on the new claim",
    ),
    # Refused Jobs.
    pytest.param(
        model(),
        observed(refusal=Refusal("jobs.batch is forbidden: exceeded quota: jobs", 403, NOW)),
        "the_job_was_refused | Pending, not Ready=QuotaExceeded, Stalled=QuotaExceeded"
        " | ModelLoadFailed",
        id="quota refuses the Job",
    ),
    pytest.param(
        model(),
        observed(refusal=Refusal("spec.template: Invalid value", 422, NOW)),
        "the_job_was_refused | Failed, not Ready=InvalidSpec, Stalled=InvalidSpec"
        " | ModelLoadFailed",
        id="overrides that make no Job",
    ),
    pytest.param(
        model(),
        observed(refusal=Refusal("jobs.batch is forbidden", 403, NOW)),
        "the_job_was_refused | Pending, not Ready=Pending",
        id="no permission",
    ),
    pytest.param(
        model(),
        observed(refusal=Refusal("forbidden", 403, NOW - timedelta(seconds=30))),
        f"it_is_to_be_loaded | create load 0 | {PENDING} | LoadStarted",
        id="refused a while ago: tried again",
    ),
]


@pytest.mark.parametrize(("resource", "seen", "expected"), LIVING)
def test_what_is_done_about_a_model(resource: Model, seen: Observed, expected: str) -> None:
    """The first rule that applies decides."""
    assert told(decide(resource, seen)) == expected


def test_while_an_answer_is_awaited_nothing_changes_and_nothing_is_forgotten() -> None:
    """What a webhook call has come to is told with the answer; a missed answer is looked for."""
    done = job(COMPLETE, ended_ago=4)
    delivery = Delivery("id", Outcome.DELIVERED, "", NOW)
    resource = model(loading(), webhook=HOOK)
    awaited = decide(resource, with_pod(done, running("convert"), deliveries=(delivery,)))
    assert (awaited.status, awaited.noted) == (resource.status, ())
    assert awaited.wake_after == 6
    seen = with_pod(done, answered("convert", LOADED), deliveries=(delivery,))
    assert decide(resource, seen).noted == (delivery,)


KUEUE = Settings(loader=LoaderSettings(kueue_queue="gpus"))


def test_with_kueue_the_load_begins_when_kueue_says_so() -> None:
    """Until then nobody is told of a load, however long its Job has been there."""
    queued = plan(model(), observed(), KUEUE, NOW)
    assert told(queued) == "it_is_to_be_loaded | create load 0 | Queued, not Ready=Queued"
    assert queued.create is not None
    (ready,) = queued.status.conditions
    assert ready.message == f"Job {queued.create.name} waits for Kueue to admit it into queue gpus"
    status = queued.status.model_dump(mode="json", by_alias=True)
    still = plan(model(status), observed(job(suspended=True)), KUEUE, NOW)
    assert still.status == queued.status
    begun = NOW - timedelta(seconds=3)
    let_in = plan(model(status), observed(job(started=begun)), KUEUE, NOW)
    assert told(let_in) == f"the_job_is_running | {PENDING} | LoadStarted"
    assert let_in.status.start_time == times.stamp(begun), "what it waited is not load time"


def test_the_place_in_the_queue_is_told() -> None:
    """In the message of Ready."""
    (ready,) = decide(model(), observed(admitted=False, place=5)).status.conditions
    assert ready.message == "among the next 5 in the queue"


@pytest.mark.parametrize("rendered", [True, False])
def test_the_preview_is_told_where_there_is_one(rendered: bool) -> None:
    """Its path is the operator's own; the answer only says that there is one."""
    answer = LOADED.model_copy(update={"preview": rendered})
    artifact = decide(
        model(loading()), with_pod(job(COMPLETE), answered("convert", answer))
    ).status.artifact
    assert artifact is not None
    expected = f"{artifact.immutable_path}/preview.png" if rendered else None
    assert artifact.preview_path == expected
