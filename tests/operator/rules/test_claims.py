"""Which PersistentVolumeClaims a model may use: the default one, listed ones, and labelled ones."""

from __future__ import annotations

import pytest

from sd_api import names
from sd_api.reasons import Reason
from sd_operator.base.settings import Settings
from sd_operator.resources.claim import ClaimView
from tests.support.rules.decisions import (
    COMPLETE,
    FAILED,
    OTHER,
    Case,
    by_id,
    decided,
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
    published,
    running,
    stalled,
)

DATABASE = {"claimName": "database"}
CAUSE = "PersistentVolumeClaim database in namespace art may not be used for models"
MESSAGE = with_remedy(CAUSE, Reason.CLAIM_NOT_ALLOWED)
FOREIGN = claim(name="database")
LABELLED = claim(name="database", for_models=True)
ON_DATABASE = published(claimName="database")

CASES = [
    Case(
        id="new model that names another claim: no finalizer, no Job",
        model=model(finalizer=False, storage=DATABASE),
        observed=observed(claim=FOREIGN),
        rule="claim_is_not_allowed",
        phase="Pending",
        ready="not ClaimNotAllowed",
        stalled="ClaimNotAllowed",
        events=("ModelLoadFailed",),
        message=MESSAGE,
    ),
    Case(
        id="labelled claim",
        model=model(storage=DATABASE),
        observed=observed(claim=LABELLED),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="claim labelled after the refusal",
        model=model(stalled(Reason.CLAIM_NOT_ALLOWED) | {"job": None}, storage=DATABASE),
        observed=observed(claim=LABELLED),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="suspended model that names another claim",
        model=model(storage=DATABASE, suspend=True),
        observed=observed(claim=FOREIGN),
        rule="claim_is_not_allowed",
        phase="Pending",
        ready="not ClaimNotAllowed",
        stalled="ClaimNotAllowed",
        events=("ModelLoadFailed",),
        message=MESSAGE,
    ),
    Case(
        id="label removed during a load: the load is stopped",
        model=model(loading(), storage=DATABASE),
        observed=with_pod(job(), running("fetch"), claim=FOREIGN),
        rule="claim_is_not_allowed",
        does="delete load 0",
        phase="Pending",
        ready="not ClaimNotAllowed",
        stalled="ClaimNotAllowed",
        events=("ModelLoadFailed",),
        message=MESSAGE,
    ),
    Case(
        id="label removed after the load, which is published",
        model=model(loading(), storage=DATABASE),
        observed=with_pod(job(COMPLETE), answered("convert", LOADED), claim=FOREIGN),
        rule="load_job_succeeded",
        phase="Ready",
        ready="Loaded",
        events=("ModelLoaded",),
        message="sketch is published on claim database",
    ),
    Case(
        id="label removed after the load, which failed",
        model=model(loading(), storage=DATABASE),
        observed=with_pod(
            job(FAILED), answered("fetch", failed(Reason.NOT_A_MODEL)), claim=FOREIGN
        ),
        rule="load_job_failed",
        phase="Failed",
        ready="not NotAModel",
        stalled="NotAModel",
        events=("ModelLoadFailed",),
        message=with_remedy("what and where", Reason.NOT_A_MODEL),
    ),
    Case(
        id="failed for good: its reason stays in Stalled",
        model=model(stalled(Reason.NOT_A_MODEL), storage=DATABASE),
        observed=observed(claim=FOREIGN),
        rule="claim_is_not_allowed",
        phase="Pending",
        ready="not ClaimNotAllowed",
        stalled="NotAModel",
        message=MESSAGE,
    ),
    Case(
        id="published on a claim that is no longer labelled: it stays Ready",
        model=model(ON_DATABASE, storage=DATABASE),
        observed=observed(claim=FOREIGN),
        rule="wanted_version_is_published",
        phase="Ready",
        ready="Loaded",
        message="sketch is published on claim database",
    ),
    Case(
        id="published on a claim that is no longer labelled: it is loaded again",
        model=model(published(OTHER, claimName="database"), storage=DATABASE),
        observed=observed(claim=FOREIGN),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="Loaded",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="published on the default claim of another time",
        model=model(published(OTHER, claimName="database")),
        observed=observed(claim=FOREIGN),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="Loaded",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
    Case(
        id="published on an earlier claim of this name",
        model=model(ON_DATABASE, storage=DATABASE),
        observed=observed(claim=claim(name="database", uid="another")),
        rule="claim_is_not_allowed",
        phase="Pending",
        ready="not ClaimNotAllowed",
        stalled="ClaimNotAllowed",
        events=("ModelLoadFailed",),
        message=MESSAGE,
    ),
    Case(
        id="published on an unknown claim of this name",
        model=model(published(OTHER, claimName="database", claimUID=None), storage=DATABASE),
        observed=observed(claim=FOREIGN),
        rule="claim_is_not_allowed",
        phase="Ready",
        ready="Loaded",
        stalled="ClaimNotAllowed",
        events=("ModelLoadFailed",),
        message=MESSAGE,
    ),
    Case(
        id="deleted before it was published: it is released",
        model=model(storage=DATABASE, deleted_ago=5),
        observed=observed(claim=FOREIGN),
        rule="cleanup_claim_is_not_allowed",
        does="release",
        events=("ModelDeleted",),
        message="PersistentVolumeClaim database may not be used for models, and nothing is"
        " published on it",
    ),
    Case(
        id="deleted during a load: the load is stopped first",
        model=model(loading(), storage=DATABASE, deleted_ago=5),
        observed=observed(job(), claim=FOREIGN),
        rule="load_job_is_not_stopped",
        does="delete load 0",
        phase="Deleting",
        ready="not Deleting",
        message="the loader Job is being stopped",
    ),
    Case(
        id="deleted after it was published: its files are removed",
        model=model(ON_DATABASE, storage=DATABASE, deleted_ago=5),
        observed=observed(claim=FOREIGN),
        rule="cleanup_is_due",
        does="create remove 0",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_model_uses_only_a_pvc_for_models(case: Case) -> None:
    """A model that was published on a PVC may use this PVC even if its label is removed."""
    case.check()


def test_an_administrator_can_list_claims() -> None:
    """A PVC that the settings list needs no label."""
    settings = Settings(allowed_claims=frozenset({"database"}))
    resource = model(storage=DATABASE)
    assert decided(resource, observed(claim=FOREIGN), settings).rule == "load_is_due"
    other = claim(name="database-2")
    assert decided(resource, observed(claim=other), settings).rule == "claim_is_not_allowed"


@pytest.mark.parametrize(
    ("labels", "for_models"),
    [
        pytest.param({names.LABEL_MODELS: "true"}, True, id="label"),
        pytest.param({names.LABEL_MODELS: "false"}, False, id="another value"),
        pytest.param({names.LABEL_MODELS: "True"}, False, id="another case"),
        pytest.param({"app": "database"}, False, id="other labels"),
        pytest.param(None, False, id="no labels"),
    ],
)
def test_the_label_has_one_value(labels: dict[str, str] | None, for_models: bool) -> None:
    """Only a label with the value "true" lets models use the PVC; an annotation does not count."""
    metadata = {"name": "database", "namespace": "art", "uid": "c", "labels": labels}
    metadata["annotations"] = {names.LABEL_MODELS: "true"}
    assert ClaimView.from_body({"metadata": metadata}).for_models is for_models
