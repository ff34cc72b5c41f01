"""Which Jobs and Pods are a model's own. Pure.

Anyone who may create Jobs can copy the labels, the owner and the name of a model's Job. The API
server assigns the uid, and the operator records it in the status in the pass that creates the Job.
So owner, name and uid together prove that a Job is the operator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sd_api import names
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model
from sd_operator.resources.observed import JobState, JobView, Observed, PodView
from sd_operator.rules.manifests import KUEUE_LABEL


def observed(
    model: Model, jobs: Iterable[JobView], pods: Iterable[PodView], claim: ClaimView | None
) -> Observed:
    """Return the model's Jobs, Pods and PVC, without Jobs and Pods that only have its labels."""
    status = model.status
    load_uid = status.job.uid if status.job else None
    cleanup_uid = status.cleanup_job.uid if status.cleanup_job else None
    ours = [job for job in jobs if _is_made_for(job, model)]
    load_jobs = [job for job in ours if job.role == names.ROLE_LOAD]
    cleanups = [job for job in ours if job.role == names.ROLE_REMOVE]
    return Observed(
        load_job=next((job for job in load_jobs if job.uid == load_uid), None),
        cleanup_job=next((job for job in cleanups if job.uid == cleanup_uid), None),
        unrecorded=tuple(
            job
            for job in load_jobs
            if job.uid != load_uid and job.state is JobState.RUNNING and not job.deleting
        ),
        other_cleanups=tuple(
            job for job in cleanups if job.uid != cleanup_uid and not job.deleting
        ),
        # By the recorded uids: the Pods of a deleted Job may still be stopping.
        pods=tuple(pod for pod in pods if pod.job_uid and pod.job_uid in (load_uid, cleanup_uid)),
        claim=claim,
    )


def _is_made_for(job: JobView, model: Model) -> bool:
    """Whether a Job has the owner and the name that the operator gives to the model's Jobs."""
    is_load = job.role == names.ROLE_LOAD
    what = job.load_hash if is_load else names.ROLE_REMOVE
    name = names.job_name(model.name, model.uid, what, job.attempt)
    return (job.name, job.owner_uid) == (name, model.uid if is_load else "")


def is_as_planned(job: Mapping[str, Any], planned: Mapping[str, Any]) -> bool:
    """Whether an existing Job is the one that we would create, so that it can be taken over.

    If so, an earlier request of an operator created it, and the reply or the uid was lost. If in
    doubt, return False: then the Job is deleted and created again. A Job that has ended is always
    in doubt: it may be an earlier load of the version. Nothing is lost with it: after a success the
    next Job finds the receipt, and after a failure it fails in the same way.
    """
    if JobView.from_body(job).state is not JobState.RUNNING:
        return False
    by_kueue = bool(planned["spec"].get("suspend"))
    labels, annotations = (job["metadata"].get(key) or {} for key in ("labels", "annotations"))
    if not by_kueue and any(key.startswith(_KUEUE_PREFIX) for key in (*labels, *annotations)):
        return False
    # Other labels and annotations of the Job itself, such as those of a webhook, have no effect.
    metadata = job["metadata"] | {
        "labels": {key: labels.get(key) for key in planned["metadata"]["labels"]},
        "annotations": {key: annotations.get(key) for key in planned["metadata"]["annotations"]},
    }
    return _matches({**job, "metadata": metadata}, planned, by_kueue)


def _matches(actual: object, planned: object, by_kueue: bool) -> bool:
    """Whether a value is as planned, apart from what API servers and Kueue change."""
    if actual is None:
        return planned in _EMPTY
    if isinstance(planned, Mapping):
        if not isinstance(actual, Mapping):
            return False
        skipped = _REWRITTEN | _KUEUE_SETS if by_kueue else _REWRITTEN
        return all(
            _matches(actual.get(key), planned[key], by_kueue)
            if key in planned
            else _is_default(key, actual[key], by_kueue)
            for key in (actual.keys() | planned.keys()) - skipped
        )
    if isinstance(planned, list | tuple):
        return (
            isinstance(actual, list)
            and len(actual) == len(planned)
            and all(
                _matches(one, other, by_kueue) for one, other in zip(actual, planned, strict=True)
            )
        )
    return actual == planned


def _is_default(key: str, value: object, by_kueue: bool) -> bool:
    """Whether a field that was not planned is one that API servers or Kueue set."""
    is_kueues = by_kueue and key.startswith(_KUEUE_PREFIX)
    return value is None or is_kueues or key in _GENERATED or value in _DEFAULTS.get(key, ())


# API servers drop these values if a field is not a pointer. False is not among them: all fields
# that we set to False are pointers.
_EMPTY: tuple[object, ...] = (None, "", [], (), {})
# Admission rewrites quantities: 1000m becomes 1.
_REWRITTEN = frozenset({"resources", "sizeLimit"})
_KUEUE_PREFIX = KUEUE_LABEL.partition("/")[0] + "/"
# Kueue sets these fields when it starts a Job.
_KUEUE_SETS = frozenset({"suspend", "nodeSelector", "tolerations"})
_GENERATED = frozenset(
    {
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "status",
        "selector",  # manualSelector must be false
        "controller-uid",
        "job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
    }
)
_DEFAULTS: Mapping[str, tuple[object, ...]] = {
    "parallelism": (1,),
    "completions": (1,),
    "completionMode": ("NonIndexed",),
    "suspend": (False,),
    "manualSelector": (False,),
    "podReplacementPolicy": ("Failed",),
    "dnsPolicy": ("ClusterFirst",),
    "schedulerName": ("default-scheduler",),
    "securityContext": ({},),
    "procMount": ("Default",),
    "imagePullPolicy": ("Always", "IfNotPresent"),
    "defaultMode": (0o644,),
    "apiVersion": ("v1",),
}
