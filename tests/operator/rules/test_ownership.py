"""Which Jobs and Pods count as a model's own: those whose uid the status records."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
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
    """The Jobs with the recorded uids are the load Job and the clean-up Job; their Pods count."""
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
    """A Job that differs in one of them is not the load Job.

    Whoever creates a Job sets its labels, annotations, owner and name, but not its uid.
    """
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
    """A Job that differs in one of them is not the clean-up Job.

    A clean-up Job has no owner, so that the garbage collector does not delete it with the model.
    """
    seen = ownership.observed(model(published() | CLEANUP), [forged], [], claim())
    assert (seen.load_job, seen.cleanup_job, seen.unrecorded) == (None, None, ())


def test_without_a_record_no_job_is_the_models_own() -> None:
    """If the status has no uid, there is no load Job.

    A Job whose uid could not be recorded is taken over when the operator creates it again.
    """
    load, cleanup = job(), job(role=names.ROLE_REMOVE)
    seen = ownership.observed(model(), [load, cleanup], [pod(load), pod(cleanup)], claim())
    assert (seen.load_job, seen.cleanup_job, seen.pods) == (None, None, ())
    assert seen.unrecorded == (load,)


def test_other_clean_ups_of_the_model_are_known_by_their_name() -> None:
    """Clean-up Jobs with the right name but another uid than the recorded are `other_cleanups`."""
    remove = names.ROLE_REMOVE
    recorded = job(role=remove, attempt=1)
    earlier, unrecorded = job(JobState.FAILED, role=remove), job(role=remove, attempt=2)
    others = [job(role=remove, name="payroll"), job(role=remove, attempt=3, deleting=True)]
    status = published() | {"cleanupJob": job_status(role=remove, attempt=1)}
    seen = ownership.observed(model(status), [recorded, earlier, unrecorded, *others], [], claim())
    assert seen.cleanup_job == recorded
    assert seen.other_cleanups == (earlier, unrecorded)


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
    """A Job with another owner or name, or one that has ended, is not in `unrecorded`."""
    assert ownership.observed(model(), [foreign], [], claim()).unrecorded == ()


def test_pods_of_a_deleted_job_still_count() -> None:
    """Pods of the recorded Job are observed even without the Job: they may still write."""
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
FULL = Settings(
    loader=LoaderSettings(
        image_pull_secrets=("registry",), ca_configmap="company-ca", logins_secret="logins"
    ),
    hub_endpoint="https://mirror.example.com/hf",
)
EMPTY = Settings(loader=LoaderSettings(security_context={"pod": {}}))


def planned(settings: Settings = GPU) -> Json:
    """Return the manifest of a loader Job."""
    return manifests.build(manifests.plan_load(model(), settings, claim(), 0), settings)


def as_created(manifest: Json) -> Json:
    """Return a Job as the API server returns it: with defaults, and quantities as strings."""
    made: Json = json.loads(json.dumps(manifest))
    made["metadata"] |= {"uid": "j1", "resourceVersion": "7", "generation": 1, "managedFields": []}
    made["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    made["metadata"]["labels"] |= {"example.com/added": "by a webhook"}
    made["spec"] |= {"parallelism": 1, "completions": 1, "completionMode": "NonIndexed"}
    made["spec"] |= {"podReplacementPolicy": "Failed", "manualSelector": False}
    made["spec"] |= {"selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "j1"}}}
    made["spec"].setdefault("suspend", False)
    for rule in made["spec"]["podFailurePolicy"]["rules"]:
        rule.setdefault("onPodConditions", None)
    template = made["spec"]["template"]
    template["metadata"]["creationTimestamp"] = None
    template["metadata"]["labels"] |= {"controller-uid": "j1", "job-name": "sketch"}
    template["metadata"]["labels"]["batch.kubernetes.io/job-name"] = "sketch"
    spec = template["spec"]
    spec |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        container["imagePullPolicy"] = "IfNotPresent"
        limits = container["resources"]["limits"]
        container["resources"]["limits"] = {key: str(amount) for key, amount in limits.items()}
        for variable in container["env"]:
            if "valueFrom" in variable:
                variable["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    for volume in spec["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["defaultMode"] = 0o644
        if "emptyDir" in volume:
            volume["emptyDir"]["sizeLimit"] = "1073741824"
    made["status"] = {"startTime": "2026-01-01T00:00:00Z", "active": 1}
    return made


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(GPU, id="own queue"),
        pytest.param(KUEUE, id="Kueue"),
        pytest.param(FULL, id="everything set"),
        pytest.param(EMPTY, id="values that API servers leave out"),
    ],
)
def test_a_job_of_a_lost_reply_is_recognised(settings: Settings) -> None:
    """A Job counts as planned with the defaults and rewritten quantities of an API server."""
    made = as_created(planned(settings))
    if settings is EMPTY:
        del made["spec"]["template"]["spec"]["securityContext"]
    assert ownership.is_as_planned(made, planned(settings))


def test_a_job_that_kueue_has_started_is_recognised() -> None:
    """The Job still counts as planned after Kueue has unsuspended and placed it."""
    started = as_created(planned(KUEUE))
    started["spec"]["suspend"] = False
    template = started["spec"]["template"]
    template["metadata"]["labels"]["kueue.x-k8s.io/podset"] = "main"
    template["metadata"]["annotations"]["kueue.x-k8s.io/workload"] = "job-sketch"
    template["spec"]["nodeSelector"] = {"pool": "gpus"}
    template["spec"]["tolerations"] = [{"key": "gpu", "operator": "Exists"}]
    assert ownership.is_as_planned(started, planned(KUEUE))


def test_a_clean_up_job_of_a_lost_reply_is_recognised() -> None:
    """A clean-up Job as the API server returns it counts as planned."""
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


def append(*path: Any, item: Json) -> Callable[[Json], None]:
    """Return a function that appends to one list of a Job."""

    def apply(body: Json) -> None:
        functools.reduce(operator.getitem, path, body).append(item)  # type: ignore[attr-defined]

    return apply


def remove(*path: Any) -> Callable[[Json], None]:
    """Return a function that removes one field of a Job."""

    def apply(body: Json) -> None:
        *parents, last = path
        del functools.reduce(operator.getitem, parents, body)[last]

    return apply


PYTHONPATH = {"name": "PYTHONPATH", "value": "/models/evil"}
CODE = {"name": "tmp", "mountPath": "/usr/lib/python3/dist-packages"}
COMPLETE, FAILED = ({"type": kind, "status": "True"} for kind in ("Complete", "Failed"))
QUEUE = "kueue.x-k8s.io/queue-name"
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
            change("metadata", "annotations", names.ANNOTATION_CLAIM_UID, to="previous"),
            id="made for a previous PVC",
        ),
        pytest.param(change("metadata", "deletionTimestamp", to="2026-01-01T00:00:00Z"), id="ends"),
        pytest.param(change(*CONVERT, "image", to="evil"), id="another image"),
        pytest.param(change(*FETCH, "args", to=["fetch"]), id="other arguments"),
        pytest.param(change(*CONVERT, "command", to=["sh"]), id="another command"),
        pytest.param(change(*POD, "initContainers", to=[]), id="without fetch"),
        pytest.param(change(*POD, "volumes", to=[]), id="without the volume"),
        pytest.param(change("spec", "suspend", to=True), id="suspended for good"),
        pytest.param(change("spec", "parallelism", to=0), id="without Pods for good"),
        pytest.param(change("metadata", "finalizers", to=["example.com/held"]), id="a finalizer"),
        pytest.param(change("metadata", "labels", QUEUE, to="held"), id="queued in Kueue"),
        pytest.param(change("spec", "managedBy", to="example.com/none"), id="another controller"),
        pytest.param(change("spec", "activeDeadlineSeconds", to=1), id="another deadline"),
        pytest.param(change("spec", "backoffLimit", to=0), id="another limit of retries"),
        pytest.param(change("spec", "ttlSecondsAfterFinished", to=0), id="another TTL"),
        pytest.param(change("spec", "completions", to=2), id="two completions"),
        pytest.param(change("spec", "completionMode", to="Indexed"), id="another mode"),
        pytest.param(change("spec", "manualSelector", to=True), id="a selector of its own"),
        pytest.param(change("spec", "podFailurePolicy", "rules", to=[]), id="without the rules"),
        pytest.param(change(*FETCH, "env", 0, "value", to="x"), id="another value"),
        pytest.param(append(*FETCH, "env", item=PYTHONPATH), id="another variable"),
        pytest.param(change(*FETCH, "envFrom", to=[{"secretRef": {"name": "x"}}]), id="envFrom"),
        pytest.param(append(*CONVERT, "volumeMounts", item=CODE), id="a mount over the code"),
        pytest.param(change(*CONVERT, "volumeMounts", 0, "subPath", to="x"), id="a part mounted"),
        pytest.param(change(*CONVERT, "lifecycle", to={"postStart": {}}), id="a hook"),
        pytest.param(change(*CONVERT, "workingDir", to="/models"), id="another folder"),
        pytest.param(change(*CONVERT, "imagePullPolicy", to="Never"), id="image never pulled"),
        pytest.param(change(*CONVERT, "securityContext", to={}), id="with more rights"),
        pytest.param(append(*POD, "containers", item={"name": "more"}), id="another container"),
        pytest.param(append(*POD, "volumes", item={"name": "more"}), id="another volume"),
        pytest.param(change(*POD, "volumes", 1, to={"name": "tmp", "hostPath": {}}), id="hostPath"),
        pytest.param(change(*POD, "volumes", 1, "emptyDir", "medium", to="Memory"), id="in memory"),
        pytest.param(change(*POD, "serviceAccountName", to="admin"), id="another account"),
        pytest.param(remove(*POD, "automountServiceAccountToken"), id="with an API token"),
        pytest.param(change(*POD, "hostAliases", to=[{"ip": "192.0.2.1"}]), id="other addresses"),
        pytest.param(change(*POD, "hostNetwork", to=True), id="on the node's network"),
        pytest.param(change(*POD, "schedulingGates", to=[{"name": "x"}]), id="never scheduled"),
        pytest.param(change(*POD, "schedulerName", to="none"), id="another scheduler"),
        pytest.param(change(*POD, "nodeSelector", to={"pool": "none"}), id="another node"),
        pytest.param(change(*POD, "dnsPolicy", to="None"), id="other name servers"),
        pytest.param(
            change("spec", "template", "metadata", "annotations", "inject", to="true"),
            id="a Pod that webhooks change",
        ),
        pytest.param(change("status", "conditions", to=[COMPLETE]), id="complete"),
        pytest.param(change("status", "conditions", to=[FAILED]), id="failed"),
    ],
)
def test_a_job_that_differs_is_not_taken_over(forge: Callable[[Json], None]) -> None:
    """A Job with any other difference does not count as planned.

    Otherwise, whoever creates the Job first could decide what is loaded, or prevent the load.
    """
    forged = as_created(planned())
    forge(forged)
    assert not ownership.is_as_planned(forged, planned())
