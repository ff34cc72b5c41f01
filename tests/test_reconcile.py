"""What the operator decides: one row per rule, from a model and what is observed to a plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed import (
    CLAIM_UID,
    LOADED,
    NOW,
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

from sd_api import names
from sd_api.load import LoadResult, Progress, Stage
from sd_api.reasons import Reason, Retry
from sd_api.status import ConditionType
from sd_operator import conditions
from sd_operator.model import Model
from sd_operator.observe import ContainerView, JobState, JobView, Observed, Refusal
from sd_operator.plan import Plan
from sd_operator.reconcile import carries_secret, plan
from sd_operator.settings import Settings

SETTINGS = Settings()
OTHER = model(revision="fp16").wanted
HOOK = "https://hooks.example.com/models"
COMPLETE, FAILED = JobState.COMPLETE, JobState.FAILED


def observed(*jobs: JobView, **fields: Any) -> Observed:
    """What is seen: these Jobs, and a claim."""
    return Observed(**({"jobs": jobs, "claim": claim()} | fields))


def with_pod(of: JobView, *containers: ContainerView, **fields: Any) -> Observed:
    """What is seen: a Job with one Pod of these containers."""
    known = {key: fields.pop(key) for key in list(fields) if key in Observed.__annotations__}
    return observed(of, pods=(pod(of, *containers, **fields),), **known)


def decide(resource: Model, seen: Observed, **changes: Any) -> Plan:
    """The plan, with changed settings."""
    return plan(resource, seen, replace(SETTINGS, **changes), NOW)


def told(decided: Plan) -> str:
    """A plan in one line: rule | what is done | how the model stands | what is told to people."""
    done = [f"delete {one.role} {one.attempt}" for one in decided.delete]
    done += ["look"] * decided.look
    done += [f"finalizer {decided.finalizer}"] if decided.finalizer else []
    if decided.create is not None:
        role = "load" if hasattr(decided.create.request, "url") else "remove"
        done.append(f"create {role} {decided.create.attempt}")
    status = decided.status
    stands = [str(status.phase)] if status.phase else []
    stands += [
        f"{one.type}={one.reason}" if one.status == "True" else f"not {one.type}={one.reason}"
        for one in status.conditions
    ]
    events = [one.reason.value for one in decided.events]
    parts = [decided.rule, ", ".join(done), ", ".join(stands), ", ".join(events)]
    return " | ".join(part for part in parts if part)


PENDING = "Pending, not Ready=Pending, Reconciling=Pending"
SERVED = "Ready, Ready=Loaded"

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
        "the_claim_is_missing | Pending, not Ready=ClaimNotFound, Stalled=ClaimNotFound"
        " | ModelLoadFailed",
        id="no claim: no finalizer, no Job",
    ),
    pytest.param(
        model(finalizer=False),
        observed(claim=claim(deleting=True)),
        "the_claim_is_missing | Pending, not Ready=ClaimNotFound, Stalled=ClaimNotFound"
        " | ModelLoadFailed",
        id="claim being deleted",
    ),
    pytest.param(
        model(revision="fp17"),
        observed(),
        "spec_is_invalid | Failed, not Ready=InvalidSpec, Stalled=InvalidSpec | ModelLoadFailed",
        id="spec that a newer CRD allows",
    ),
    pytest.param(
        model(name="n" * 64),
        observed(),
        "spec_is_invalid | Failed, not Ready=InvalidSpec, Stalled=InvalidSpec | ModelLoadFailed",
        id="name too long",
    ),
    pytest.param(
        model(url="trained-1", modelType="api_trained"),
        observed(),
        "spec_is_invalid | Failed, not Ready=InvalidSpec, Stalled=InvalidSpec | ModelLoadFailed",
        id="trained id without a template",
    ),
    pytest.param(
        model(),
        observed(admitted=False),
        "it_must_wait_its_turn | Queued, not Ready=Queued",
        id="queued",
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
    # The Job has ended.
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
        observed(job(COMPLETE)),
        "the_job_succeeded | look | Pending, not Ready=Pending",
        id="complete, Pod not seen yet",
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
        "the_job_failed | look | Pending, not Ready=Pending",
        id="failed, Pods not seen yet",
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
        "the_claim_is_missing | Pending, not Ready=ClaimNotFound, Stalled=ClaimNotFound"
        " | ModelLoadFailed",
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


def removal_job(state: JobState = JobState.RUNNING, **fields: Any) -> JobView:
    """The clean-up Job."""
    return job(state, role=names.ROLE_REMOVE, **fields)


DELETING = "Deleting, not Ready=Deleting"
DELETED = [
    pytest.param(
        model(deleted_ago=5, finalizer=False),
        observed(),
        "it_is_not_ours",
        id="not ours: nothing was ever loaded",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(),
        f"the_files_are_to_be_removed | create remove 0 | {DELETING}",
        id="clean-up Job",
    ),
    pytest.param(
        model(loading(), deleted_ago=5),
        with_pod(job(), running("fetch")),
        f"the_load_still_runs | delete load 0 | {DELETING}",
        id="the load is stopped first",
    ),
    pytest.param(
        model(loading(), deleted_ago=5),
        observed(pods=(pod(job(), running("fetch")),), fresh=True),
        f"a_pod_may_still_write | {DELETING}",
        id="its Pod ends first",
    ),
    pytest.param(
        model(loading(), deleted_ago=5),
        observed(pods=(pod(job(), running("fetch")),)),
        "a_pod_may_still_write | look | Pending, not Ready=Pending",
        id="is the Pod really there?",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        with_pod(removal_job(), running("remove")),
        f"the_clean_up_is_running | {DELETING}",
        id="clean-up runs",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(removal_job(COMPLETE)),
        "the_files_are_removed | finalizer remove | Ready, Ready=Loaded | ModelDeleted",
        id="cleaned up",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(removal_job(FAILED, ended_ago=1)),
        f"the_clean_up_failed | {DELETING}",
        id="clean-up failed: wait",
    ),
    pytest.param(
        model(published(), deleted_ago=99),
        observed(removal_job(FAILED, ended_ago=60)),
        f"the_files_are_to_be_removed | create remove 1 | {DELETING}",
        id="clean-up failed: again",
    ),
    pytest.param(
        model(published(), deleted_ago=901),
        observed(removal_job(FAILED, ended_ago=1)),
        f"the_clean_up_failed | {DELETING}, Stalled=CleanupFailed | CleanupFailed",
        id="clean-up fails for 15 minutes",
    ),
    pytest.param(
        model(published(), deleted_ago=5, annotations={names.ANNOTATION_SKIP_CLEANUP: "true"}),
        observed(removal_job(FAILED)),
        "the_user_gives_the_files_up | finalizer remove | Ready, Ready=Loaded | ModelDeleted",
        id="the user gives the files up",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(claim=None),
        "the_claim_is_gone | finalizer remove | Ready, Ready=Loaded | ModelDeleted",
        id="claim gone",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(claim=claim(uid="another")),
        "the_claim_is_gone | finalizer remove | Ready, Ready=Loaded | ModelDeleted",
        id="claim made anew",
    ),
    pytest.param(
        model(published() | {"loadHash": OTHER}, deleted_ago=5),
        observed(claim=claim(uid="another")),
        f"the_files_are_to_be_removed | create remove 0 | {DELETING}",
        id="claim made anew, and something was loaded onto it",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(refusal=Refusal("", 403, NOW, namespace_terminating=True)),
        "the_namespace_ends | finalizer remove | Ready, Ready=Loaded | ModelDeleted",
        id="namespace terminating",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(refusal=Refusal("no", 403, NOW)),
        f"the_job_was_refused | {DELETING}",
        id="clean-up Job refused",
    ),
    pytest.param(
        model(published(), deleted_ago=5, revision="fp17"),
        observed(),
        f"the_files_are_to_be_removed | create remove 0 | {DELETING}",
        id="also with a spec that cannot be read",
    ),
]


@pytest.mark.parametrize(("resource", "seen", "expected"), DELETED)
def test_what_is_done_about_a_deleted_model(resource: Model, seen: Observed, expected: str) -> None:
    """The finalizer goes when the files are gone, or nothing can be done about them."""
    assert told(decide(resource, seen)) == expected


def test_published_paths_are_computed() -> None:
    """Of the loader's answer only numbers and words are taken; paths and claim are ours."""
    decided = decide(model(loading()), with_pod(job(COMPLETE), answered("convert", LOADED)))
    artifact, source = decided.status.artifact, decided.status.source
    assert artifact is not None
    assert source is not None
    assert artifact.path == "sketch"
    assert artifact.immutable_path == f".store/{UID}/{WANTED}"
    assert artifact.load_hash == WANTED
    assert (artifact.claim_name, artifact.claim_uid) == ("models", CLAIM_UID)
    assert artifact.size == "2.1 GB"
    assert source.url == "https://example.com/model.safetensors"


def test_loading_is_not_repeated_while_the_status_is_on_its_way() -> None:
    """The plan's own status, observed with the same Job, plans nothing more."""
    seen = with_pod(job(COMPLETE), answered("convert", LOADED))
    first = decide(model(loading()), seen)
    again = decide(model(first.status.model_dump(mode="json", by_alias=True)), seen)
    assert again.status == first.status
    assert told(again) == f"it_is_published | {SERVED}"


def test_a_waiting_model_says_what_it_waits_for() -> None:
    """The scheduler's words are in the message, the remedy once it is stuck."""
    seen = with_pod(job(), unscheduled="0/3 nodes are available:\n insufficient gpu", age=1000)
    ready = conditions.find(decide(model(loading()), seen).status.conditions, ConditionType.READY)
    assert ready is not None
    assert "0/3 nodes are available: insufficient gpu" in ready.message
    assert Reason.UNSCHEDULABLE.remedy in ready.message


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.retry is Retry.RESYNC])
def test_a_retried_failure_says_when(reason: Reason) -> None:
    """Reason, what happened, what to do, and the time of the next attempt."""
    seen = with_pod(job(FAILED), answered("fetch", failed(reason, "the host example.com")))
    decided = decide(model(loading()), seen)
    ready = conditions.find(decided.status.conditions, ConditionType.READY)
    assert ready is not None
    assert ready.message.startswith("the host example.com. ")
    assert ready.message.endswith("The next attempt is at 2026-01-02T03:05:04Z.")
    assert decided.wake_after == 60


def test_edits_outside_the_load_hash_advance_ready_at_once() -> None:
    """A changed webhook loads nothing, and `kubectl wait` is content."""
    ready = _ready(decide(model(published(), generation=2, webhook=HOOK), observed()))
    assert ready.observed_generation == 2


def test_ready_keeps_the_published_generation_until_the_new_load_ends() -> None:
    """`kubectl wait --for=condition=Ready` after a change waits for the new version."""
    changed = model(published(), generation=2, revision="fp16")
    assert _ready(decide(changed, observed())).observed_generation == 1
    done = with_pod(job(COMPLETE, load_hash=OTHER), answered("convert", LOADED))
    assert _ready(decide(changed, done)).observed_generation == 2


def test_ready_flips_once_per_change() -> None:
    """The time of transition is that of the change of status, not of the last write."""
    ready = _ready(decide(model(loading()), with_pod(job(), running("fetch"))))
    assert ready.last_transition_time == "2026-01-01T00:00:00Z"
    loaded = _ready(decide(model(loading()), with_pod(job(COMPLETE), answered("convert", LOADED))))
    assert loaded.last_transition_time == "2026-01-02T03:04:05Z"


def _ready(decided: Plan) -> Any:
    return conditions.find(decided.status.conditions, ConditionType.READY)


def test_progress_is_shown_while_it_runs_and_only_then() -> None:
    """The loader's last line becomes status.progress with a text for people."""
    line = Progress(stage=Stage.DOWNLOADING, percent=42, bytes_total=2_100_000_000)
    decided = decide(model(loading()), with_pod(job(), running("fetch"), progress=line))
    assert decided.status.progress is not None
    assert decided.status.progress.text == "42% of 2.1 GB"
    status = decided.status.model_dump(mode="json", by_alias=True)
    done = decide(model(status), with_pod(job(COMPLETE), answered("convert", LOADED)))
    assert done.status.progress is None


def test_the_clean_up_job_keeps_what_is_to_be_retained() -> None:
    """With deletionPolicy Retain the files are released instead of removed."""
    kept = decide(model(published(), deleted_ago=1, deletionPolicy="Retain"), observed()).create
    gone = decide(model(published(), deleted_ago=1), observed()).create
    assert kept is not None
    assert gone is not None
    assert kept.request.model_dump()["retain"] is True
    assert gone.request.model_dump()["retain"] is False


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        pytest.param("https://civitai.com/api/download/models/1?token=x", True, id="token"),
        pytest.param("https://user:pw@example.com/m.ckpt", True, id="userinfo"),
        pytest.param("https://user@example.com/m.ckpt", True, id="user"),
        pytest.param("https://example.com/m.ckpt?type=Model&format=x", False, id="harmless query"),
        pytest.param("https://example.com/@v1/m.ckpt", False, id="at sign in the path"),
        pytest.param("runwayml/stable-diffusion-v1-5", False, id="repo id"),
    ],
)
def test_urls_that_carry_secrets_are_noticed(url: str, secret: bool) -> None:
    """By userinfo, or by a parameter's name."""
    assert carries_secret(url) is secret


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
JOBS = st.builds(
    job,
    st.sampled_from(list(JobState)),
    attempt=st.integers(0, 3),
    load_hash=st.sampled_from([WANTED, OTHER]),
    role=st.sampled_from([names.ROLE_LOAD, names.ROLE_REMOVE]),
    deleting=st.booleans(),
)
CONTAINERS = st.sampled_from(
    [
        running("fetch"),
        running("convert"),
        answered("fetch", failed(Reason.NOT_A_MODEL)),
        answered("convert", LOADED),
        ContainerView("fetch", "terminated", "OOMKilled", 137),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    status=STATUSES,
    jobs=st.lists(JOBS, max_size=3, unique_by=lambda one: one.uid),
    containers=st.lists(CONTAINERS, max_size=2),
    has_claim=st.booleans(),
    suspend=st.booleans(),
    deleted=st.booleans(),
    finalizer=st.booleans(),
)
def test_whatever_is_observed_a_plan_holds_the_invariants(
    status: dict[str, Any],
    jobs: list[JobView],
    containers: list[ContainerView],
    has_claim: bool,
    suspend: bool,
    deleted: bool,
    finalizer: bool,
) -> None:
    """Every state has a plan, and no plan endangers what is served or loads twice."""
    resource = model(
        status, suspend=suspend, deleted_ago=9.0 if deleted else None, finalizer=finalizer
    )
    phase = "Running" if any(one.state == "running" for one in containers) else "Failed"
    pods = tuple(pod(one, *containers, phase=phase) for one in jobs)
    seen = Observed(jobs=tuple(jobs), pods=pods, claim=claim() if has_claim else None, fresh=True)
    decided = decide(resource, seen)
    assert not decided.look, "a fresh look is never followed by another"
    served = seen.claim is not None and resource.status.artifact is not None and not deleted
    ready = conditions.find(decided.status.conditions, ConditionType.READY)
    if served:
        assert ready is not None
        assert ready.status == "True"
    if decided.create is not None:
        assert finalizer, "no Job without the finalizer"
        at_work = [one for one in jobs if one.state is JobState.RUNNING and not one.deleting]
        assert not [one for one in at_work if deleted or one.role == names.ROLE_LOAD]
        assert decided.create.name not in {one.name for one in jobs}
    if not deleted:
        assert decided.finalizer is None or str(decided.finalizer) == "add"
    assert decided.wake_after is None or decided.wake_after >= 0


def test_a_body_without_status_or_annotations_is_read() -> None:
    """What a user has just applied has neither."""
    bare = body()
    del bare["status"], bare["metadata"]["annotations"], bare["metadata"]["finalizers"]
    assert Model.from_body(bare).status.phase is None
