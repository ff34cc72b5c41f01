"""A model that is being deleted: its files are removed first, then the finalizer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sd_api import names
from sd_api.reasons import Reason
from sd_operator.resources.observed import (
    JobState,
    JobView,
    Rejection,
)
from sd_operator.rules.decision import Release
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
    NOW,
    claim,
    job,
    job_status,
    loading,
    model,
    pod,
    published,
    running,
    without_uid,
)


def cleaning(attempt: int = 0) -> dict[str, Any]:
    """Return the status of a model that was published, and whose clean-up Job was created."""
    return published() | {"cleanupJob": job_status(attempt, role=names.ROLE_REMOVE)}


def cleanup_job(state: JobState = JobState.RUNNING, **fields: Any) -> JobView:
    """Return the clean-up Job."""
    return job(state, role=names.ROLE_REMOVE, **fields)


CASES = [
    Case(
        id="no finalizer: nothing was ever loaded",
        model=model(deleted_ago=5, finalizer=False),
        observed=observed(),
        rule="deleted_model_has_no_finalizer",
        does="wait",
        message="the deletion does not wait for the operator",
    ),
    Case(
        id="clean-up Job",
        model=model(published(), deleted_ago=5),
        observed=observed(),
        rule="cleanup_is_due",
        does="create remove 0",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="a running load is stopped first",
        model=model(loading(), deleted_ago=5),
        observed=with_pod(job(), running("fetch")),
        rule="load_job_is_not_stopped",
        does="delete load 0",
        phase="Deleting",
        ready="not Deleting",
        message="the loader Job is being stopped",
    ),
    Case(
        id="deleted before the Job could be recorded: the Job is stopped first",
        model=model(deleted_ago=5),
        observed=observed(unrecorded=(job(),)),
        rule="load_job_is_not_stopped",
        does="delete load 0",
        phase="Deleting",
        ready="not Deleting",
        message="the loader Job is being stopped",
    ),
    Case(
        id="the Pod must stop first",
        model=model(loading(), deleted_ago=5),
        observed=observed(pods=(pod(job(), running("fetch")),), fresh=True),
        rule="loader_pod_may_write",
        phase="Deleting",
        ready="not Deleting",
        message="Pod POD is stopping",
    ),
    Case(
        id="node lost: one of two Pods may still write",
        model=model(loading(), deleted_ago=5),
        observed=observed(
            pods=(
                pod(job(), running("convert"), age=900, deleting=True),
                pod(job(), age=9, phase="Failed"),
            ),
            fresh=True,
        ),
        rule="loader_pod_may_write",
        phase="Deleting",
        ready="not Deleting",
        message="Pod POD is stopping",
    ),
    Case(
        id="Pod in the cache",
        model=model(loading(), deleted_ago=5),
        observed=observed(pods=(pod(job(), running("fetch")),)),
        rule="loader_pod_may_write",
        does="refresh",
        message="Pod POD is stopping",
    ),
    Case(
        id="clean-up runs",
        model=model(cleaning(), deleted_ago=5),
        observed=with_pod(cleanup_job(), running("remove")),
        rule="cleanup_job_is_running",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB is running",
    ),
    Case(
        id="cleaned up",
        model=model(cleaning(), deleted_ago=5),
        observed=observed(cleanup_job(COMPLETE)),
        rule="cleanup_job_succeeded",
        does="release",
        events=("ModelDeleted",),
        message="the files are removed",
    ),
    Case(
        id="clean-up failed: not yet time to retry",
        model=model(cleaning(), deleted_ago=5),
        observed=observed(cleanup_job(FAILED, ended_ago=1)),
        rule="cleanup_job_failed",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB failed (LoaderCrashed: Job JOB failed:)",
    ),
    Case(
        id="clean-up failed: time to retry",
        model=model(cleaning(), deleted_ago=99),
        observed=observed(cleanup_job(FAILED, ended_ago=60)),
        rule="cleanup_is_due",
        does="create remove 1",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="clean-up Job not in the cache",
        model=model(cleaning(), deleted_ago=5),
        observed=observed(),
        rule="cleanup_job_is_not_observed",
        does="refresh",
        message="clean-up Job JOB is not in the cache",
    ),
    Case(
        id="clean-up Job deleted before it ended",
        model=model(cleaning(), deleted_ago=5),
        observed=observed(fresh=True),
        rule="cleanup_is_due",
        does="create remove 1",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="another Job holds the name of the clean-up Job",
        model=model(published(), deleted_ago=99),
        observed=observed(
            rejection=Rejection("it is being deleted", 409, NOW - timedelta(seconds=30), attempt=0)
        ),
        rule="cleanup_is_due",
        does="create remove 1",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="uid of the clean-up Job not recorded: the same attempt finds it",
        model=model(
            published() | {"cleanupJob": without_uid(job_status(1, role=names.ROLE_REMOVE))},
            deleted_ago=5,
        ),
        observed=observed(fresh=True),
        rule="cleanup_is_due",
        does="create remove 1",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="clean-up fails for 15 minutes",
        model=model(cleaning(), deleted_ago=901),
        observed=observed(cleanup_job(FAILED, ended_ago=1)),
        rule="cleanup_job_failed",
        phase="Deleting",
        ready="not Deleting",
        stalled="CleanupFailed",
        events=("CleanupFailed",),
        message=with_remedy(
            "clean-up Job JOB failed (LoaderCrashed: Job JOB failed:)", Reason.CLEANUP_FAILED
        ),
    ),
    Case(
        id="skip-cleanup annotation",
        model=model(cleaning(), deleted_ago=5, annotations={names.ANNOTATION_SKIP_CLEANUP: "true"}),
        observed=observed(cleanup_job(FAILED)),
        rule="cleanup_is_skipped",
        does="release",
        events=("ModelDeleted",),
        message="annotation sd-operator.dev/skip-cleanup: the files stay on the volume",
    ),
    Case(
        id="claim not in the cache",
        model=model(published(), deleted_ago=5),
        observed=observed(claim=None),
        rule="claim_is_gone",
        does="refresh",
        message="PersistentVolumeClaim models is not in the cache",
    ),
    Case(
        id="claim gone",
        model=model(published(), deleted_ago=5),
        observed=observed(claim=None, fresh=True),
        rule="claim_is_gone",
        does="release",
        events=("ModelDeleted",),
        message="PersistentVolumeClaim models is gone, and the files with it",
    ),
    Case(
        id="claim replaced",
        model=model(published(), deleted_ago=5),
        observed=observed(claim=claim(uid="another")),
        rule="claim_is_gone",
        does="release",
        events=("ModelDeleted",),
        message="PersistentVolumeClaim models was replaced; the files are gone",
    ),
    Case(
        id="claim replaced, and a version was loaded onto it",
        model=model(published() | {"loadHash": OTHER}, deleted_ago=5),
        observed=observed(claim=claim(uid="another")),
        rule="cleanup_is_due",
        does="create remove 0",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="namespace terminating",
        model=model(published(), deleted_ago=5),
        observed=observed(rejection=Rejection("", 403, NOW, namespace_terminating=True)),
        rule="namespace_is_terminating",
        does="release",
        events=("ModelDeleted",),
        message="namespace art is being deleted, and its volumes with it",
    ),
    Case(
        id="clean-up Job rejected",
        model=model(published(), deleted_ago=5),
        observed=observed(rejection=Rejection("no", 403, NOW)),
        rule="cleanup_job_was_rejected",
        phase="Deleting",
        ready="not Deleting",
        message="the clean-up Job cannot be created: no",
    ),
    Case(
        id="unreadable spec",
        model=model(published(), deleted_ago=5, revision="fp17"),
        observed=observed(),
        rule="cleanup_is_due",
        does="create remove 0",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_a_deleted_model_is_cleaned_up(case: Case) -> None:
    """The finalizer stays until the files are removed, gone with their volume, or given up."""
    case.check()


def test_released_model_leaves_no_clean_up_job() -> None:
    """All clean-up Jobs are deleted, also those that the status does not record.

    Otherwise their Pods would keep the PVC from being deleted.
    """
    recorded, other = cleanup_job(), cleanup_job(attempt=1)
    skip = {names.ANNOTATION_SKIP_CLEANUP: "true"}
    skipped = model(cleaning(), deleted_ago=5, annotations=skip)
    released = decided(skipped, observed(recorded, other_cleanups=(other,))).decision
    assert isinstance(released, Release)
    assert released.jobs == (recorded, other)
