"""Published files count as missing only after two checks of the same version in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sd_api import names
from sd_api.reasons import Reason, Retry
from sd_api.status import StatusArtifact
from sd_operator.resources.check_finding import CheckFinding
from sd_operator.rules.decision import Act, CreateJob
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
    UID,
    WANTED,
    answered,
    claim,
    failed,
    job,
    loading,
    model,
    published,
    running,
    stalled,
)

SINCE = "2026-01-01T00:30:00Z"
SERVED = "sketch is published on claim models"
CAUSE = f"files of sketch (.store/{UID}/{WANTED}) on claim models are missing or cut off"
MESSAGE = with_remedy(CAUSE, Reason.ARTIFACT_MISSING)
GONE = published(missingTime=SINCE)
"""A status whose artifact has missingTime, but whose conditions do not report it."""
MISSING = stalled(Reason.ARTIFACT_MISSING, base=GONE)
"""The status of a model whose files are missing; its condition Ready is not changed yet."""


def finding(missed: int, load_hash: str = WANTED, **artifact: Any) -> CheckFinding:
    """Return a finding about the version of `published`: `missed` checks found files missing."""
    status = published(load_hash, **artifact)["artifact"]
    return CheckFinding(StatusArtifact.model_validate(status), missed)


def seen(missed: int, *jobs: Any, **artifact: Any) -> Any:
    """Return an observation with a finding."""
    return observed(*jobs, finding=finding(missed, **artifact))


def reloading(status: dict[str, Any]) -> Any:
    """Return a model whose reload annotation has a new value."""
    return model(status, annotations={names.ANNOTATION_RELOAD: "2"})


RELOADED = reloading(GONE).wanted
READY = {"phase": "Ready", "ready": "Loaded", "message": SERVED}
NOT_READY = {
    "rule": "published_files_are_missing",
    "phase": "Failed",
    "ready": "not ArtifactMissing",
    "stalled": "ArtifactMissing",
    "message": MESSAGE,
}
STARTED = {"message": "Job JOB was created; its Pod is starting", "reconciling": "Pending"}

CASES = [
    Case(
        id="no check yet",
        model=model(published()),
        observed=observed(),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="the check found all files",
        model=model(published()),
        observed=seen(0),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="one check found files missing",
        model=model(published()),
        observed=seen(1),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="two checks in a row found files missing",
        model=model(published()),
        observed=seen(2),
        events=("ArtifactMissing",),
        **NOT_READY,
    ),
    Case(
        id="suspended model: the files are missing all the same",
        model=model(published(), suspend=True),
        observed=seen(2),
        events=("ArtifactMissing",),
        **NOT_READY,
    ),
    Case(
        id="reported before, and still missing",
        model=model(MISSING),
        observed=seen(3),
        **NOT_READY,
    ),
    Case(
        id="reported before; the operator has restarted and knows no check",
        model=model(MISSING),
        observed=observed(),
        **NOT_READY,
    ),
    Case(
        id="reported before; the first check after a restart found files missing",
        model=model(MISSING),
        observed=seen(1),
        **NOT_READY,
    ),
    Case(
        id="the files are back",
        model=model(MISSING),
        observed=seen(0),
        rule="wanted_version_is_published",
        events=("ArtifactRestored",),
        **READY,
    ),
    Case(
        id="the last check was of an earlier load of the same spec",
        model=model(published()),
        observed=seen(2, lastUpdateTime="2025-12-31T00:00:00Z"),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="the last check was of another version",
        model=model(published()),
        observed=seen(2, load_hash=OTHER),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="the last check was of other content",
        model=model(published()),
        observed=seen(2, digest="blake3:" + "ef" * 32),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="the last check was on another claim",
        model=model(published()),
        observed=seen(2, claimUID="another"),
        rule="wanted_version_is_published",
        **READY,
    ),
    Case(
        id="the check of an earlier load found its files: the present ones are still missing",
        model=model(MISSING),
        observed=seen(0, lastUpdateTime="2025-12-31T00:00:00Z"),
        **NOT_READY,
    ),
    Case(
        id="reload",
        model=reloading(MISSING),
        observed=seen(3),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        events=("LoadStarted",),
        **STARTED,
    ),
    Case(
        id="the reload waits in the queue",
        model=reloading(MISSING),
        observed=observed(admitted=False),
        rule="model_is_not_admitted",
        does="enqueue",
        phase="Queued",
        ready="not Queued",
        message="waiting for other models to load",
    ),
    Case(
        id="the reload succeeded",
        model=reloading(MISSING),
        observed=with_pod(
            job(COMPLETE, load_hash=RELOADED),
            answered("convert", LOADED),
            phase="Succeeded",
            finding=finding(3),
        ),
        rule="load_job_succeeded",
        events=("LoadStarted", "ModelLoaded"),
        **READY,
    ),
    Case(
        id="the reload failed: its reason is reported",
        model=reloading(MISSING),
        observed=with_pod(
            job(FAILED, load_hash=RELOADED),
            answered("fetch", failed(Reason.SOURCE_NOT_FOUND)),
            phase="Failed",
            finding=finding(3),
        ),
        rule="load_job_failed",
        phase="Failed",
        ready="not SourceNotFound",
        stalled="SourceNotFound",
        events=("LoadStarted", "ModelLoadFailed"),
        message=with_remedy("what and where", Reason.SOURCE_NOT_FOUND),
    ),
    Case(
        id="the previous version, which is served while a reload runs, is missing",
        model=reloading(loading(load_hash=RELOADED) | {"artifact": published()["artifact"]}),
        observed=with_pod(
            job(load_hash=RELOADED), running("fetch"), phase="Running", finding=finding(2)
        ),
        rule="load_job_is_running",
        phase="Downloading",
        ready="not Downloading",
        reconciling="Downloading",
        events=("ArtifactMissing",),
        message="Job JOB is loading https://example.com/model.safetensors",
    ),
    Case(
        id="the reload was taken back",
        model=model(MISSING | {"loadHash": RELOADED}),
        observed=seen(3),
        **NOT_READY,
    ),
    Case(
        id="the claim was replaced: the model is loaded onto the new one",
        model=model(MISSING),
        observed=observed(claim=claim(uid="new"), finding=finding(3)),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        **STARTED,
    ),
    Case(
        id="the claim is deleted",
        model=model(MISSING),
        observed=observed(claim=None, finding=finding(3)),
        rule="claim_does_not_exist",
        phase="Pending",
        ready="not ClaimNotFound",
        stalled="ClaimNotFound",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "PersistentVolumeClaim models does not exist in namespace art", Reason.CLAIM_NOT_FOUND
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_missing_files(case: Case) -> None:
    """After two checks in a row, the model is not Ready; a request or a new PVC loads it again."""
    case.check()


def artifact_after(status: dict[str, Any], *jobs: Any, missed: int | None) -> StatusArtifact | None:
    """Return the artifact in the status after a pass; if `missed` is None, without a finding."""
    observation = observed(*jobs) if missed is None else seen(missed, *jobs)
    return act(model(status), observation).status.artifact


@pytest.mark.parametrize(
    ("before", "missed", "after"),
    [
        pytest.param(None, None, None, id="never checked"),
        pytest.param(None, 0, None, id="complete"),
        pytest.param(None, 1, None, id="missing once"),
        pytest.param(None, 2, "2026-01-02T03:04:05Z", id="missing twice"),
        pytest.param(SINCE, None, SINCE, id="after a restart"),
        pytest.param(SINCE, 1, SINCE, id="missing once after a restart"),
        pytest.param(SINCE, 2, SINCE, id="still missing"),
        pytest.param(SINCE, 0, None, id="back"),
    ],
)
def test_the_status_keeps_since_when_files_are_missing(
    before: str | None, missed: int | None, after: str | None
) -> None:
    """The artifact gets, keeps or loses missingTime; its other fields stay the same."""
    artifact = artifact_after(published(missingTime=before), missed=missed)
    expected = published(missingTime=after)["artifact"]
    assert artifact == StatusArtifact.model_validate(expected)


def test_a_second_pass_does_not_report_missing_files_again() -> None:
    """The second pass writes the same status, and emits no Event."""
    resource = model(published())
    first = act(resource, seen(2)).status
    again = act(replace(resource, status=first), seen(3))
    assert (again.status, again.events) == (first, ())


def test_missing_files_do_not_start_a_load() -> None:
    """A user must request the load: a download may be large, and the volume may come back."""
    assert Reason.ARTIFACT_MISSING.retry is Retry.ON_CHANGE
    decision = act(model(published()), seen(2))
    assert decision.job is None
    assert decision.wake_after is None


def test_missing_files_are_not_a_load_that_failed() -> None:
    """The webhook reports loads only: not the missing files, but the failure of the reload."""
    resource = model(MISSING, webhook=HOOK)
    assert act(resource, seen(2)).calls == ()
    replaced = with_pod(
        job(FAILED, claim_uid="new"),
        answered("fetch", failed(Reason.SOURCE_NOT_FOUND)),
        phase="Failed",
        claim=claim(uid="new"),
    )
    reported = loading() | {"conditions": MISSING["conditions"]}
    calls = act(model(reported, webhook=HOOK), replaced).calls
    assert [call.entry.event for call in calls] == ["model.load_failed"]


def test_a_model_with_missing_files_is_loaded_onto_its_pvc_again() -> None:
    """The PVC is neither labelled nor allowed by name, but the model was published on it."""
    storage = {"claimName": "database"}
    gone = published(claimName="database", missingTime=SINCE)
    resource = model(gone, annotations={names.ANNOTATION_RELOAD: "2"}, storage=storage)
    decision = decided(resource, observed(claim=claim(name="database"))).decision
    assert isinstance(decision, Act)
    assert isinstance(decision.job, CreateJob)
