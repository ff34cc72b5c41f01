"""Which Jobs and Pods count as a model's own: those whose uid the status records."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sd_api import names
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules import manifests, ownership
from tests.support.rules.decisions import OTHER
from tests.support.rules.observed import (
    UID,
    claim,
    job,
    job_status,
    loading,
    model,
    pod,
    published,
    running,
)

CLEANUP = {"cleanupJob": job_status(role=names.ROLE_REMOVE)}


def test_recorded_jobs_and_their_pods_are_the_models_own() -> None:
    """A model may have one load Job and one clean-up Job."""
    load, cleanup = job(), job(role=names.ROLE_REMOVE)
    pods = (pod(load, running("fetch")), pod(cleanup, running("remove")))
    seen = ownership.observed(model(loading() | CLEANUP), [load, cleanup], pods, claim())
    assert (seen.load_job, seen.cleanup_job, seen.unrecorded) == (load, cleanup, ())
    assert (seen.pods, seen.claim) == (pods, claim())


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(job(uid="forged"), id="another uid"),
        pytest.param(job(owner_uid=""), id="no owner"),
        pytest.param(job(owner_uid="another"), id="another owner"),
        pytest.param(job(name="forged"), id="another name"),
        pytest.param(job(load_hash=OTHER, uid=job().uid, name=job().name), id="another load"),
        pytest.param(job(attempt=7, uid=job().uid, name=job().name), id="another attempt"),
        pytest.param(
            job(role=names.ROLE_REMOVE, uid=job().uid), id="a clean-up Job with the load's uid"
        ),
    ],
)
@pytest.mark.parametrize("state", list(JobState))
def test_owner_name_and_uid_of_a_load_job_must_match(forged: JobView, state: JobState) -> None:
    """Labels, annotations, owner and name are written by whoever creates the Job."""
    forged = dataclasses.replace(forged, state=state)
    seen = ownership.observed(model(loading()), [forged], [], claim())
    assert (seen.load_job, seen.cleanup_job) == (None, None)


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(job(role=names.ROLE_REMOVE, uid="forged"), id="another uid"),
        pytest.param(job(role=names.ROLE_REMOVE, owner_uid=UID), id="with an owner"),
        pytest.param(job(role=names.ROLE_REMOVE, name="forged"), id="another name"),
    ],
)
def test_owner_name_and_uid_of_a_clean_up_job_must_match(forged: JobView) -> None:
    """A clean-up Job has no owner, so that the garbage collector does not delete it."""
    seen = ownership.observed(model(published() | CLEANUP), [forged], [], claim())
    assert (seen.load_job, seen.cleanup_job, seen.unrecorded) == (None, None, ())


def test_without_a_record_no_job_is_the_models_own() -> None:
    """A Job whose uid could not be recorded is taken over by its name when it is created again."""
    load, cleanup = job(), job(role=names.ROLE_REMOVE)
    seen = ownership.observed(model(), [load, cleanup], [pod(load), pod(cleanup)], claim())
    assert (seen.load_job, seen.cleanup_job, seen.pods) == (None, None, ())
    assert seen.unrecorded == (load,)


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(job(owner_uid=""), id="no owner"),
        pytest.param(job(name="payroll"), id="another name"),
        pytest.param(job(JobState.COMPLETE), id="ended"),
        pytest.param(job(deleting=True), id="being deleted"),
        pytest.param(job(role=names.ROLE_REMOVE), id="a clean-up Job"),
    ],
)
def test_only_running_loads_with_owner_and_name_are_unrecorded(foreign: JobView) -> None:
    """The operator leaves all other running Jobs alone."""
    assert ownership.observed(model(), [foreign], [], claim()).unrecorded == ()


def test_pods_of_a_deleted_job_still_count() -> None:
    """They may write until they have stopped; the status records the uid of their Job."""
    stopping = pod(job(), running("fetch"))
    assert ownership.observed(model(loading()), [], [stopping], claim()).pods == (stopping,)


def test_pods_of_other_jobs_do_not_count() -> None:
    """Pods without a controller do not count either, whatever is recorded."""
    others = [pod(job(uid="forged")), dataclasses.replace(pod(job()), job_uid="")]
    assert ownership.observed(model(loading()), [job()], others, claim()).pods == ()
    nothing = {"job": {"name": "sketch-1", "attempt": 0}}
    assert ownership.observed(model(nothing), [job()], others, claim()).pods == ()


Json = dict[str, Any]
GPU = Settings()
KUEUE = Settings(loader=LoaderSettings(kueue_queue="gpus"))


def planned(settings: Settings = GPU) -> Json:
    """Return the manifest of a loader Job."""
    return manifests.build(manifests.plan_load(model(), settings, claim(), 0), settings)


def as_created(manifest: Json) -> Json:
    """Return a Job as the API server returns it: with defaults, and quantities as strings."""
    made = copy.deepcopy(manifest)
    made["metadata"] |= {"uid": "j1", "resourceVersion": "7"}
    made["metadata"]["labels"] |= {"example.com/added": "by a webhook"}
    made["spec"] |= {"parallelism": 1, "completions": 1, "completionMode": "NonIndexed"}
    made["spec"].setdefault("suspend", False)
    spec = made["spec"]["template"]["spec"]
    spec |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
    for container in spec["containers"]:
        container["imagePullPolicy"] = "IfNotPresent"
        limits = container["resources"]["limits"]
        container["resources"]["limits"] = {key: str(amount) for key, amount in limits.items()}
    return made


@pytest.mark.parametrize("settings", [GPU, KUEUE], ids=["own queue", "Kueue"])
def test_a_job_of_a_lost_reply_is_recognised(settings: Settings) -> None:
    """API servers add defaults and rewrite quantities."""
    assert ownership.is_as_planned(as_created(planned(settings)), planned(settings))


def test_a_job_that_kueue_has_started_is_recognised() -> None:
    """Kueue unsuspends it, perhaps before its uid is recorded."""
    started = as_created(planned(KUEUE))
    started["spec"]["suspend"] = False
    assert ownership.is_as_planned(started, planned(KUEUE))


def test_a_clean_up_job_of_a_lost_reply_is_recognised() -> None:
    """It has no owner."""
    plan = manifests.plan_remove(model(published()), GPU, "models", 0)
    manifest = manifests.build(plan, GPU)
    assert ownership.is_as_planned(as_created(manifest), manifest)


def change(*path: Any, to: object) -> Callable[[Json], None]:
    """Return a function that sets one field of a Job."""

    def apply(body: Json) -> None:
        *parents, last = path
        for key in parents:
            body = body[key]
        body[last] = to

    return apply


POD = ("spec", "template", "spec")
FETCH, CONVERT = (*POD, "initContainers", 0), (*POD, "containers", 0)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(change("metadata", "ownerReferences", to=[]), id="no owner"),
        pytest.param(
            change("metadata", "ownerReferences", 0, "uid", to="another"), id="another owner"
        ),
        pytest.param(
            change("metadata", "ownerReferences", 0, "controller", to=False), id="no controller"
        ),
        pytest.param(change("metadata", "labels", to=None), id="no labels"),
        pytest.param(
            change("metadata", "annotations", names.ANNOTATION_LOAD_HASH, to=OTHER),
            id="another load",
        ),
        pytest.param(
            change("metadata", "annotations", names.ANNOTATION_CLAIM_UID, to="former"),
            id="made for a former claim",
        ),
        pytest.param(change("metadata", "deletionTimestamp", to="2026-01-01T00:00:00Z"), id="ends"),
        pytest.param(change(*CONVERT, "image", to="evil"), id="another image"),
        pytest.param(change(*FETCH, "args", to=["fetch"]), id="other arguments"),
        pytest.param(change(*CONVERT, "command", to=["sh"]), id="another command"),
        pytest.param(change(*POD, "initContainers", to=[]), id="without fetch"),
        pytest.param(change(*POD, "volumes", to=[]), id="without the volume"),
        pytest.param(change("spec", "suspend", to=True), id="suspended for good"),
        pytest.param(change("spec", "parallelism", to=0), id="without Pods for good"),
    ],
)
def test_a_job_that_differs_is_not_taken_over(forge: Callable[[Json], None]) -> None:
    """Otherwise whoever creates the Job first decides what is loaded, or that nothing is."""
    forged = as_created(planned())
    forge(forged)
    assert not ownership.is_as_planned(forged, planned())
