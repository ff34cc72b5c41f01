"""What is done about a model that is being deleted: one row per case of every rule."""

from __future__ import annotations

from typing import Any

import pytest

from sd_api import names
from sd_operator.resources.model import Model
from sd_operator.resources.observed import JobState, JobView, Observed, Refusal
from tests.support.rules.decisions import COMPLETE, FAILED, OTHER, decide, observed, told, with_pod
from tests.support.rules.observed import NOW, claim, job, loading, model, pod, published, running

DELETING = "Deleting, not Ready=Deleting"


def removal_job(state: JobState = JobState.RUNNING, **fields: Any) -> JobView:
    """The clean-up Job."""
    return job(state, role=names.ROLE_REMOVE, **fields)


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
        observed(
            pods=(
                pod(job(), running("convert"), age=900, deleting=True),
                pod(job(), age=9, phase="Failed"),
            ),
            fresh=True,
        ),
        f"a_pod_may_still_write | {DELETING}",
        id="node lost: of two Pods one may still write",
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
        "the_claim_is_gone | look | Ready, Ready=Loaded",
        id="is the claim really gone?",
    ),
    pytest.param(
        model(published(), deleted_ago=5),
        observed(claim=None, fresh=True),
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
