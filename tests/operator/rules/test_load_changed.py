"""Rules for a model whose spec or PVC changes: reload, suspend, replaced PVCs."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from tests.support.rules.decisions import (
    COMPLETE,
    FAILED,
    OTHER,
    Case,
    by_id,
    observed,
    with_pod,
    with_remedy,
)
from tests.support.rules.observed import (
    LOADED,
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

CASES = [
    Case(
        id="reload: the old version stays served",
        model=model(published(), revision="fp16"),
        observed=observed(),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="Loaded",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="failed reload: Ready and Stalled",
        model=model(published(), revision="fp16"),
        observed=with_pod(
            job(FAILED, load_hash=OTHER), answered("fetch", failed(Reason.NOT_A_MODEL))
        ),
        rule="load_job_failed",
        phase="Ready",
        ready="Loaded",
        stalled="NotAModel",
        events=("LoadStarted", "ModelLoadFailed"),
        message=with_remedy("what and where", Reason.NOT_A_MODEL),
    ),
    Case(
        id="changed during the load: the old Job is deleted",
        model=model(loading(load_hash=OTHER)),
        observed=with_pod(job(load_hash=OTHER), running("fetch")),
        rule="previous_load_is_running",
        does="delete load 0",
        phase="Pending",
        ready="not Pending",
        message="waiting for the previous load to stop",
    ),
    Case(
        id="changed during the load: the old Pod may still write",
        model=model(loading(load_hash=OTHER)),
        observed=observed(pods=(pod(job(load_hash=OTHER), running("fetch")),)),
        rule="previous_load_is_running",
        does="refresh",
        message="waiting for the previous load to stop: Pod POD is stopping",
    ),
    Case(
        id="changed and changed back during the load",
        model=model(published()),
        observed=observed(job(load_hash=OTHER)),
        rule="previous_load_is_running",
        does="delete load 0",
        phase="Ready",
        ready="Loaded",
        message="waiting for the previous load to stop",
    ),
    Case(
        id="nothing to do",
        model=model(published()),
        observed=observed(),
        rule="wanted_version_is_published",
        phase="Ready",
        ready="Loaded",
        message="sketch is published on claim models",
    ),
    Case(
        id="nothing to do while the Job is kept",
        model=model(published()),
        observed=with_pod(job(COMPLETE), answered("convert", LOADED)),
        rule="wanted_version_is_published",
        phase="Ready",
        ready="Loaded",
        message="sketch is published on claim models",
    ),
    Case(
        id="suspended from the start",
        model=model(suspend=True, finalizer=False),
        observed=observed(),
        rule="model_is_suspended",
        phase="Pending",
        ready="not Suspended",
        message="spec.suspend is true; set it to false to load",
    ),
    Case(
        id="suspend deletes the running Job",
        model=model(loading(), suspend=True),
        observed=with_pod(job(), running("fetch")),
        rule="model_is_suspended",
        does="delete load 0",
        phase="Pending",
        ready="not Suspended",
        message="spec.suspend is true; set it to false to load",
    ),
    Case(
        id="suspended reload: served",
        model=model(published(), suspend=True, revision="fp16"),
        observed=observed(),
        rule="model_is_suspended",
        phase="Ready",
        ready="Loaded",
        message="spec.suspend is true; set it to false to load",
    ),
    Case(
        id="loaded",
        model=model(published(), suspend=True),
        observed=observed(),
        rule="wanted_version_is_published",
        phase="Ready",
        ready="Loaded",
        message="sketch is published on claim models",
    ),
    Case(
        id="suspended after a failure: Stalled stays",
        model=model(stalled(Reason.UNSAFE_MODEL), suspend=True),
        observed=observed(),
        rule="model_is_suspended",
        phase="Pending",
        ready="not Suspended",
        stalled="UnsafeModel",
        message="spec.suspend is true; set it to false to load",
    ),
    Case(
        id="claim of a published model deleted",
        model=model(published()),
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
        id="claim replaced: loaded again",
        model=model(published()),
        observed=observed(claim=claim(uid="another")),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="claim replaced: the result of the old Job does not count",
        model=model(published()),
        observed=with_pod(job(COMPLETE), answered("convert", LOADED), claim=claim(uid="another")),
        rule="load_is_due",
        does="create load 1",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_changed_model_is_loaded_again(case: Case) -> None:
    """The published version is served until another is published."""
    case.check()
