"""A PVC without a volume: it was never bound, or it has lost its volume."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sd_api import names
from sd_api.reasons import SKIP_CLEANUP_REMEDY, Reason
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.observed import Observed
from sd_operator.resources.warning_event import WarningEvent
from tests.support.rules.decisions import Case, act, by_id, observed, with_pod, with_remedy
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
    stalled,
)

NODES = "0/3 nodes are available: "
UNBOUND = NODES + "pod has unbound immediate PersistentVolumeClaims. preemption: not helpful."
NO_CLASS = 'storageclass.storage.k8s.io "nfs" not found'
NEVER = claim(never_bound=True, storage_class="nfs")
LOST = claim(lost=True, volume_name="pv-7")
NOTHING = "PersistentVolumeClaim models was never bound, so nothing is published"
REMOVED = published() | {"cleanupJob": job_status(role=names.ROLE_REMOVE)}


def warning(message: str = NO_CLASS, ago: float = 5) -> WarningEvent:
    """Return a Warning Event about the binding of the PVC."""
    return WarningEvent("ProvisioningFailed", message, NOW - timedelta(seconds=ago))


def waiting(unscheduled: str = UNBOUND, age: float = 50, **fields: Any) -> Observed:
    """Return an observation of a loader Pod without a node, whose PVC was never bound."""
    seen = {"claim": NEVER, "claim_warning": warning()} | fields
    return with_pod(job(), unscheduled=unscheduled, age=age, **seen)


def starting(name: str, seen: Observed, message: str) -> Case:
    """Return a row in which the load waits with this message, and is not Stalled yet."""
    return Case(
        id=name,
        model=model(loading()),
        observed=seen,
        rule="load_job_is_running",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        message=message,
    )


LOADS = [
    starting(
        "no such StorageClass",
        waiting(),
        "PersistentVolumeClaim models is not bound: StorageClass nfs does not exist",
    ),
    starting(
        "the driver cannot make the volume, in its own words",
        waiting(claim_warning=warning("failed to provision volume: quota of the pool exceeded")),
        "PersistentVolumeClaim models is not bound: failed to provision volume: quota of the pool"
        " exceeded",
    ),
    starting(
        "no Warning yet",
        waiting(claim_warning=None),
        "PersistentVolumeClaim models is not bound: StorageClass nfs has not provided a volume yet",
    ),
    starting(
        "an old Warning no longer counts",
        waiting(claim_warning=warning(ago=601)),
        "PersistentVolumeClaim models is not bound: StorageClass nfs has not provided a volume yet",
    ),
    starting(
        "no StorageClass is named",
        waiting(claim=claim(never_bound=True), claim_warning=None),
        "PersistentVolumeClaim models is not bound: it names no StorageClass, and no"
        " PersistentVolume fits",
    ),
    starting(
        "the named PersistentVolume is missing",
        waiting(claim=claim(never_bound=True, volume_name="pv-7"), claim_warning=None),
        "PersistentVolumeClaim models is not bound: PersistentVolume pv-7 does not exist or does"
        " not fit",
    ),
    starting(
        "WaitForFirstConsumer: the volume is made for the Pod",
        waiting("", claim_warning=None),
        "PersistentVolumeClaim models is not bound yet; it waits for Pod POD",
    ),
    starting(
        "WaitForFirstConsumer: the driver cannot make the volume",
        waiting("", claim_warning=warning("no space left in the pool")),
        "PersistentVolumeClaim models is not bound: no space left in the pool",
    ),
    starting(
        "WaitForFirstConsumer: no volume of a local class fits a node",
        waiting(NODES + "3 node(s) didn't find available persistent volumes to bind."),
        "PersistentVolumeClaim models is not bound: StorageClass nfs does not exist",
    ),
    starting(
        "WaitForFirstConsumer: no node fits, for a reason of its own",
        waiting(NODES + "3 Insufficient nvidia.com/gpu."),
        f"Pod POD is waiting for a node: {NODES}3 Insufficient nvidia.com/gpu.",
    ),
    starting(
        "the volume is gone",
        waiting(
            NODES + 'persistentvolumeclaim "models" bound to non-existent persistentvolume "pv-7".',
            claim=LOST,
            claim_warning=None,
        ),
        "PersistentVolumeClaim models has lost its PersistentVolume pv-7",
    ),
    starting(
        "bound in the meantime: the scheduler's older words are repeated",
        waiting(claim=claim(storage_class="nfs"), claim_warning=None),
        f"Pod POD is waiting for a node: {UNBOUND}",
    ),
    Case(
        id="too long",
        model=model(loading()),
        observed=waiting(age=1000),
        rule="load_job_is_running",
        phase="Pending",
        ready="not ClaimNotBound",
        reconciling="ClaimNotBound",
        stalled="ClaimNotBound",
        events=("ModelLoadFailed",),
        message=with_remedy(
            "PersistentVolumeClaim models is not bound: StorageClass nfs does not exist",
            Reason.CLAIM_NOT_BOUND,
        ),
    ),
    Case(
        id="never bound, but the load is not started yet: its Pod may be what the class waits for",
        model=model(),
        observed=observed(claim=NEVER),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
]


@pytest.mark.parametrize("case", LOADS, ids=by_id)
def test_a_load_says_why_its_claim_is_not_bound(case: Case) -> None:
    """The message says why the PVC is not bound, not only that no node fits the Pod."""
    case.check()


def released(name: str, status: dict[str, Any] | None, seen: Observed) -> Case:
    """Return a row in which a deleted model is released without a clean-up."""
    return Case(
        id=name,
        model=model(status, deleted_ago=5),
        observed=seen,
        rule="claim_was_never_bound",
        does="release",
        events=("ModelDeleted",),
        message=NOTHING,
    )


DELETIONS = [
    released("never loaded", None, observed(claim=NEVER, fresh=True)),
    released("its load never started", loading(), observed(claim=NEVER, fresh=True)),
    released(
        "a clean-up Job waits for the volume",
        loading() | {"cleanupJob": job_status(role=names.ROLE_REMOVE)},
        with_pod(job(role=names.ROLE_REMOVE), unscheduled=UNBOUND, claim=NEVER, fresh=True),
    ),
    released(
        "the model was published on an earlier claim of this name",
        published(claimUID="earlier") | {"loadHash": "0" * 16},
        observed(claim=NEVER, fresh=True),
    ),
    Case(
        id="the cache may be older than the binding",
        model=model(loading(), deleted_ago=5),
        observed=observed(claim=NEVER),
        rule="claim_was_never_bound",
        does="refresh",
        message="PersistentVolumeClaim models may have been bound in the meantime",
    ),
    Case(
        id="the load is stopped first",
        model=model(loading(), deleted_ago=5),
        observed=waiting(fresh=True),
        rule="load_job_is_not_stopped",
        does="delete load 0",
        phase="Deleting",
        ready="not Deleting",
        message="the loader Job is being stopped",
    ),
    Case(
        id="its Pod may still get the volume",
        model=model(loading(), deleted_ago=5),
        observed=observed(pods=(pod(job(), unscheduled=UNBOUND),), claim=NEVER, fresh=True),
        rule="loader_pod_may_write",
        phase="Deleting",
        ready="not Deleting",
        message="Pod POD is stopping",
    ),
    Case(
        id="the status says that the model is published on this very claim",
        model=model(published(), deleted_ago=5),
        observed=observed(claim=NEVER, fresh=True),
        rule="cleanup_is_due",
        does="create remove 0",
        phase="Deleting",
        ready="not Deleting",
        message="clean-up Job JOB was created",
    ),
    Case(
        id="bound once, its volume is gone: the files may come back with it",
        model=model(REMOVED, deleted_ago=5),
        observed=with_pod(
            job(role=names.ROLE_REMOVE), unscheduled="non-existent persistentvolume", claim=LOST
        ),
        rule="cleanup_job_is_running",
        phase="Deleting",
        ready="not Deleting",
        message="PersistentVolumeClaim models has lost its PersistentVolume pv-7",
    ),
    Case(
        id="its volume has been gone for long: the user may give the files up",
        model=model(REMOVED, deleted_ago=1000),
        observed=with_pod(
            job(role=names.ROLE_REMOVE), unscheduled="non-existent persistentvolume", claim=LOST
        ),
        rule="cleanup_job_is_running",
        phase="Deleting",
        ready="not Deleting",
        stalled="ClaimNotBound",
        events=("CleanupFailed",),
        message=with_remedy(
            "PersistentVolumeClaim models has lost its PersistentVolume pv-7",
            Reason.CLAIM_NOT_BOUND,
            SKIP_CLEANUP_REMEDY,
        ),
    ),
]


LOST_MESSAGE = with_remedy(
    "PersistentVolumeClaim models has lost its PersistentVolume pv-7", Reason.CLAIM_NOT_BOUND
)
REPORTED = stalled(Reason.CLAIM_NOT_BOUND, base=published())
NOT_SERVED = {
    "rule": "published_volume_is_lost",
    "phase": "Pending",
    "ready": "not ClaimNotBound",
    "stalled": "ClaimNotBound",
    "message": LOST_MESSAGE,
}

PUBLISHED = [
    Case(
        id="Ready until now",
        model=model(published()),
        observed=observed(claim=LOST),
        events=("ArtifactMissing",),
        **NOT_SERVED,
    ),
    Case(id="reported before", model=model(REPORTED), observed=observed(claim=LOST), **NOT_SERVED),
    Case(
        id="the volume has returned",
        model=model(REPORTED),
        observed=observed(),
        rule="wanted_version_is_published",
        phase="Ready",
        ready="Loaded",
        message="sketch is published on claim models",
    ),
    Case(
        id="another version is wanted: the previous one is not served either",
        model=model(published(), revision="fp16"),
        observed=observed(claim=LOST),
        rule="load_is_due",
        does="create load 0",
        phase="Pending",
        ready="not Pending",
        reconciling="Pending",
        events=("LoadStarted",),
        message="Job JOB was created; its Pod is starting",
    ),
]


@pytest.mark.parametrize("case", PUBLISHED, ids=by_id)
def test_a_published_model_whose_volume_is_lost_is_not_ready(case: Case) -> None:
    """The model is not Ready, and is not loaded again: its files come back with the volume."""
    case.check()


@pytest.mark.parametrize("case", DELETIONS, ids=by_id)
def test_a_model_whose_claim_was_never_bound_is_released(case: Case) -> None:
    """The finalizer is removed without a clean-up, which could not start.

    If the PVC may have files, the finalizer stays until the clean-up is complete.
    """
    case.check()


@pytest.mark.parametrize(
    ("changes", "never_bound", "lost"),
    [
        pytest.param({"status": {"phase": "Pending"}}, True, False, id="new"),
        pytest.param(
            {"status": {"phase": "Pending"}, "spec": {"volumeName": "pv-7"}},
            True,
            False,
            id="asks for a volume that does not exist",
        ),
        pytest.param(
            {
                "status": {"phase": "Pending"},
                "spec": {"volumeName": "pv-7"},
                "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            },
            False,
            False,
            id="bound, before its phase is written",
        ),
        pytest.param({"status": {"phase": "Bound"}}, False, False, id="bound"),
        pytest.param({"status": {"phase": "Lost"}}, False, True, id="lost"),
        pytest.param({}, False, False, id="without a status"),
        pytest.param({"status": None}, False, False, id="with an empty status"),
    ],
)
def test_a_claim_counts_as_never_bound_only_if_its_status_says_so(
    changes: dict[str, Any], never_bound: bool, lost: bool
) -> None:
    """In doubt, a PVC does not count as never bound: a model with files must not be released."""
    metadata = {"name": "models", "namespace": "art", "uid": "c"} | changes.get("metadata", {})
    view = ClaimView.from_body({"spec": {}} | changes | {"metadata": metadata})
    assert (view.never_bound, view.lost) == (never_bound, lost)


@pytest.mark.parametrize(("age", "wake"), [(5, 10), (50, 60)])
def test_a_pod_that_waits_for_its_claim_is_read_again(age: float, wake: float) -> None:
    """Passes are scheduled to read the PVC's Warnings, because a new Event starts no pass."""
    young = job(created=NOW - timedelta(seconds=age))
    seen = with_pod(young, unscheduled=UNBOUND, claim=NEVER, age=age)
    assert act(model(loading()), seen).wake_after == wake


def test_a_running_load_ignores_that_its_pvc_is_lost() -> None:
    """A running load is reported as usual if its mounted PVC loses its volume."""
    seen = with_pod(job(), running("fetch"), claim=LOST, scheduled=NOW)
    assert act(model(loading()), seen).status.phase == "Downloading"
