"""Which Jobs and Pods are a model's own. Pure.

Anyone who may create Jobs can copy the labels, the owner and the name of a model's Job. The API
server assigns the uid, and the operator records it in the status in the pass that creates the Job.
So owner, name and uid together prove that a Job is the operator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sd_api import names
from sd_operator.resources.model import Model
from sd_operator.resources.observed import (
    ClaimView,
    JobState,
    JobView,
    Observed,
    PodView,
    controller_uid,
)


def observed(
    model: Model, jobs: Iterable[JobView], pods: Iterable[PodView], claim: ClaimView | None
) -> Observed:
    """Return the model's own objects among those that have its labels."""
    status = model.status
    load_uid = status.job.uid if status.job else None
    cleanup_uid = status.cleanup_job.uid if status.cleanup_job else None
    ours = [job for job in jobs if _is_made_for(job, model)]
    load_jobs = [job for job in ours if job.role == names.ROLE_LOAD]
    return Observed(
        load_job=next((job for job in load_jobs if job.uid == load_uid), None),
        cleanup_job=next(
            (job for job in ours if job.role == names.ROLE_REMOVE and job.uid == cleanup_uid), None
        ),
        unrecorded=tuple(
            job
            for job in load_jobs
            if job.uid != load_uid and job.state is JobState.RUNNING and not job.deleting
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

    If so, an earlier request of an operator created it, and the reply or the uid was lost.
    """
    if "deletionTimestamp" in job["metadata"] or (_suspends(job) and not _suspends(planned)):
        return False
    return _essence(job) == _essence(planned)


def _suspends(job: Mapping[str, Any]) -> bool:
    return bool(job["spec"].get("suspend"))


def _essence(job: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the fields that decide what a Job does; API servers do not change them."""
    metadata, spec = job["metadata"], job["spec"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    pod = spec["template"]["spec"]
    containers = [*(pod.get("initContainers") or ()), *(pod.get("containers") or ())]
    return (
        metadata["name"],
        controller_uid(metadata),
        [labels.get(key) for key in (names.LABEL_MODEL_UID, names.LABEL_ROLE)],
        [annotations.get(key) for key in _ANNOTATIONS],
        spec.get("parallelism", 1),
        [[container.get(key) for key in _CONTAINER] for container in containers],
        [volume.get("persistentVolumeClaim") for volume in pod.get("volumes") or ()],
    )


_ANNOTATIONS = (names.ANNOTATION_LOAD_HASH, names.ANNOTATION_ATTEMPT, names.ANNOTATION_CLAIM_UID)
_CONTAINER = ("name", "image", "command", "args")
