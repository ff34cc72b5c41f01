"""Tests of the status that a decision leads to, and of the invariants of every decision."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api import names
from sd_api.reasons import Reason, Retry
from sd_api.status import ConditionType
from sd_api.wire import Progress, Stage
from sd_operator.resources.model import Model
from sd_operator.resources.observed import ContainerView, JobState, JobView, Observed
from sd_operator.rules import conditions
from sd_operator.rules.decision import Act, AddFinalizer, CreateJob, DeleteJobs, Refresh, Release
from tests.support.rules.decisions import (
    COMPLETE,
    FAILED,
    HOOK,
    OTHER,
    act,
    decided,
    observed,
    with_pod,
)
from tests.support.rules.observed import (
    CLAIM_UID,
    LOADED,
    UID,
    WANTED,
    answered,
    body,
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


def test_published_paths_are_computed() -> None:
    """The loader's result has no paths; the operator computes the paths and the PVC name."""
    decision = act(model(loading()), with_pod(job(COMPLETE), answered("convert", LOADED)))
    artifact, source = decision.status.artifact, decision.status.source
    assert artifact is not None
    assert source is not None
    assert artifact.path == "sketch"
    assert artifact.immutable_path == f".store/{UID}/{WANTED}"
    assert artifact.load_hash == WANTED
    assert (artifact.claim_name, artifact.claim_uid) == ("models", CLAIM_UID)
    assert artifact.size == "2.1 GB"
    assert source.url == "https://example.com/model.safetensors"


def test_a_second_pass_does_not_repeat_a_decision() -> None:
    """With the new status and the same Job, the next pass decides no change and emits no Event."""
    seen = with_pod(job(COMPLETE), answered("convert", LOADED))
    first = act(model(loading()), seen)
    again = act(model(first.status.model_dump(mode="json", by_alias=True)), seen)
    assert again.status == first.status
    assert (again.job, again.events) == (None, ())
    assert (again.status.phase, _ready(again).reason) == ("Ready", "Loaded")


def test_a_waiting_model_says_what_it_waits_for() -> None:
    """The message quotes the scheduler, and has the remedy once the model is stuck."""
    seen = with_pod(job(), unscheduled="0/3 nodes are available:\n insufficient gpu", age=1000)
    ready = conditions.find(act(model(loading()), seen).status.conditions, ConditionType.READY)
    assert ready is not None
    assert "0/3 nodes are available: insufficient gpu" in ready.message
    assert Reason.UNSCHEDULABLE.remedy in ready.message


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.retry is Retry.RESYNC])
def test_a_retried_failure_shows_the_next_attempt(reason: Reason) -> None:
    """The message starts with the cause and ends with the time of the next attempt."""
    seen = with_pod(job(FAILED), answered("fetch", failed(reason, "the host example.com")))
    decision = act(model(loading()), seen)
    ready = conditions.find(decision.status.conditions, ConditionType.READY)
    assert ready is not None
    assert ready.message.startswith("the host example.com. ")
    assert ready.message.endswith("The next attempt is at 2026-01-02T03:05:04Z.")
    assert decision.wake_after == 60


def test_edits_outside_the_load_hash_advance_ready_at_once() -> None:
    """After an edit of the webhook, Ready has the new generation, so `kubectl wait` returns."""
    ready = _ready(act(model(published(), generation=2, webhook=HOOK), observed()))
    assert ready.observed_generation == 2


def test_ready_keeps_the_published_generation_until_the_new_load_ends() -> None:
    """During a reload, Ready has the generation of the published version.

    So `kubectl wait --for=condition=Ready` waits for the new version.
    """
    changed = model(published(), generation=2, revision="fp16")
    assert _ready(act(changed, observed())).observed_generation == 1
    done = with_pod(job(COMPLETE, load_hash=OTHER), answered("convert", LOADED))
    assert _ready(act(changed, done)).observed_generation == 2


def test_ready_flips_once_per_change() -> None:
    """Ready's lastTransitionTime changes with the condition's status, not with each write."""
    ready = _ready(act(model(loading()), with_pod(job(), running("fetch"))))
    assert ready.last_transition_time == "2026-01-01T00:00:00Z"
    loaded = _ready(act(model(loading()), with_pod(job(COMPLETE), answered("convert", LOADED))))
    assert loaded.last_transition_time == "2026-01-02T03:04:05Z"


def _ready(decision: Act) -> Any:
    return conditions.find(decision.status.conditions, ConditionType.READY)


def test_notes_of_the_loader_stay_until_the_next_load() -> None:
    """The message keeps what the loader assumed, until another load is published."""
    noted = LOADED.model_copy(update={"message": "taken for\n2.1; first a\x07b"})
    said = "sketch is published on claim models. taken for 2.1; first a b"
    first = act(model(loading()), with_pod(job(COMPLETE), answered("convert", noted)))
    assert _ready(first).message == said
    assert first.events[-1].message == (
        "sketch is published on claim models, 2.1 GB. taken for 2.1; first a b"
    )
    status = first.status.model_dump(mode="json", by_alias=True)
    assert _ready(act(model(status), observed())).message == said
    changed = model(status, generation=2, revision="fp16")
    assert _ready(act(changed, observed())).message == said
    done = with_pod(job(COMPLETE, load_hash=OTHER), answered("convert", LOADED))
    assert _ready(act(changed, done)).message == "sketch is published on claim models"


def test_progress_is_shown_only_while_the_load_runs() -> None:
    """status.progress has the loader's last progress while the load runs, and is absent later."""
    line = Progress(stage=Stage.DOWNLOADING, percent=42, bytes_total=2_100_000_000)
    decision = act(model(loading()), with_pod(job(), running("fetch"), progress=line))
    assert decision.status.progress is not None
    assert decision.status.progress.text == "42% of 2.1 GB"
    status = decision.status.model_dump(mode="json", by_alias=True)
    done = act(model(status), with_pod(job(COMPLETE), answered("convert", LOADED)))
    assert done.status.progress is None


def test_the_clean_up_job_keeps_what_is_to_be_retained() -> None:
    """With deletionPolicy Retain the Job releases the files and does not remove them."""
    kept = act(model(published(), deleted_ago=1, deletionPolicy="Retain"), observed()).job
    gone = act(model(published(), deleted_ago=1), observed()).job
    assert isinstance(kept, CreateJob)
    assert isinstance(gone, CreateJob)
    assert kept.job.request.model_dump()["retain"] is True
    assert gone.job.request.model_dump()["retain"] is False


@pytest.mark.parametrize(
    ("resource", "seen", "expected"),
    [
        pytest.param(model(), observed(admitted=False), True, id="waits in the queue"),
        pytest.param(model(finalizer=False), observed(), True, id="about to start"),
        pytest.param(model(), observed(), True, id="starts a load"),
        pytest.param(model(published()), observed(), False, id="published"),
        pytest.param(model(loading()), observed(job()), False, id="its Job counts instead"),
        pytest.param(model(published(), deleted_ago=1), observed(), False, id="clean-up"),
    ],
)
def test_only_a_model_that_is_to_load_stays_in_the_queue(
    resource: Model, seen: Observed, expected: bool
) -> None:
    """`uses_admission` is true only for a model that waits or is about to load.

    Every other model leaves the queue, so that the next model is admitted.
    """
    assert decided(resource, seen).uses_admission is expected


STATUSES = st.sampled_from(
    [
        {},
        loading(),
        loading(2),
        loading(load_hash=OTHER),
        published(),
        published(OTHER),
        stalled(Reason.RATE_LIMITED),
        stalled(Reason.UNSAFE_MODEL),
        stalled(Reason.CLAIM_NOT_FOUND),
    ]
)
JOB: dict[str, st.SearchStrategy[Any]] = {
    "attempt": st.integers(0, 3),
    "load_hash": st.sampled_from([WANTED, OTHER]),
}
LOAD_JOBS = st.builds(job, st.sampled_from(list(JobState)), deleting=st.booleans(), **JOB)
CLEANUP_JOBS = st.builds(
    job,
    st.sampled_from(list(JobState)),
    deleting=st.booleans(),
    role=st.just(names.ROLE_REMOVE),
    **JOB,
)
UNRECORDED_JOBS = st.builds(job, uid=st.just("unrecorded"), **JOB)
CONTAINERS = st.sampled_from(
    [
        running("fetch"),
        running("convert"),
        answered("fetch", failed(Reason.NOT_A_MODEL)),
        answered("convert", LOADED),
        ContainerView("fetch", "terminated", "OOMKilled", 137),
    ]
)


def record(of: JobView) -> dict[str, Any]:
    """Return the record of a Job in the status."""
    return {"name": of.name, "uid": of.uid, "attempt": of.attempt}


@given(
    status=STATUSES,
    load_job=st.none() | LOAD_JOBS,
    cleanup_job=st.none() | CLEANUP_JOBS,
    unrecorded=st.lists(UNRECORDED_JOBS, max_size=1),
    containers=st.lists(CONTAINERS, max_size=2),
    has_claim=st.booleans(),
    suspend=st.booleans(),
    deleted=st.booleans(),
    finalizer=st.booleans(),
)
def test_every_decision_holds_the_invariants(
    status: dict[str, Any],
    load_job: JobView | None,
    cleanup_job: JobView | None,
    unrecorded: list[JobView],
    containers: list[ContainerView],
    has_claim: bool,
    suspend: bool,
    deleted: bool,
    finalizer: bool,
) -> None:
    """Every state has a decision. No decision endangers a served model or loads it twice."""
    recorded = {"job": load_job, "cleanupJob": cleanup_job}
    own = [one for one in recorded.values() if one is not None]
    resource = model(
        status | {field: record(one) for field, one in recorded.items() if one is not None},
        suspend=suspend,
        deleted_ago=9.0 if deleted else None,
        finalizer=finalizer,
    )
    phase = "Running" if any(one.state == "running" for one in containers) else "Failed"
    seen = Observed(
        load_job=load_job,
        cleanup_job=cleanup_job,
        unrecorded=tuple(unrecorded),
        pods=tuple(pod(one, *containers, phase=phase) for one in own),
        claim=claim() if has_claim else None,
        fresh=True,
    )
    decision = decided(resource, seen).decision
    assert not isinstance(decision, Refresh), "fresh views are not refreshed again"
    if deleted:
        assert not isinstance(decision, AddFinalizer)
    else:
        assert not isinstance(decision, Release)
    if not isinstance(decision, Act):
        return
    served = seen.claim is not None and resource.status.artifact is not None and not deleted
    ready = conditions.find(decision.status.conditions, ConditionType.READY)
    if served:
        assert ready is not None
        assert ready.status == "True"
    if isinstance(decision.job, CreateJob):
        assert finalizer, "no Job without the finalizer"
        at_work = [one for one in own if one.state is JobState.RUNNING and not one.deleting]
        assert not [one for one in at_work if deleted or one.role == names.ROLE_LOAD]
        assert decision.job.job.name not in {one.name for one in own}
        assert deleted or not [one for one in unrecorded if one.load_hash != resource.wanted]
    if isinstance(decision.job, DeleteJobs):
        assert set(decision.job.jobs) <= {*own, *unrecorded}
        assert all(one.role == names.ROLE_LOAD for one in decision.job.jobs)
    assert decision.wake_after is None or decision.wake_after >= 0


def test_a_body_without_status_or_annotations_is_read() -> None:
    """A newly created resource, which has no status and no annotations, is parsed."""
    bare = body()
    del bare["status"], bare["metadata"]["annotations"], bare["metadata"]["finalizers"]
    assert Model.from_body(bare).status.phase is None
