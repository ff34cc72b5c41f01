"""Makes the changes of a decision on the API server: Jobs, finalizer, status and Events.

Each change may be repeated: if the reply to a request is lost, the next pass makes the request
again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sd_api import names
from sd_api.status import Status
from sd_operator.base.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import JOBS, MODELS, Api
from sd_operator.reconciler import events, jobs
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.resources.model import Model
from sd_operator.resources.observed import JobView, Rejection
from sd_operator.rules import manifests, ownership
from sd_operator.rules.decision import EventPlan, JobPlan

log = logging.getLogger(__name__)

OLDER_CRD = (
    "the CRD is older than the operator: it drops the uid of a Job from the status. Upgrade the CRD"
    " with the chart, then restart the operator"
)


class Executor:
    """Makes the changes. A Job that it creates or deletes changes in the cache at once, too."""

    def __init__(self, api: Api, settings: Settings, cache: ObjectCache, clock: Clock) -> None:
        self._clock = clock
        self._api = api
        self._settings = settings
        self._cache = cache
        self._crd_is_older = False

    async def delete_job(self, job: JobView) -> None:
        """Delete this Job, not a later one of the same name; its Pods are deleted with it."""
        await jobs.delete(self._api, job.namespace, job.name, job.uid)
        self._cache.drop_job(job)

    async def add_finalizer(self, model: Model) -> dict[str, Any]:
        """Add our finalizer and return the model; raise ConflictError if the model has changed."""
        return await self._set_finalizers(model, [*_finalizers_of_others(model), names.FINALIZER])

    async def remove_finalizer(self, model: Model) -> dict[str, Any] | None:
        """Remove our finalizer and return the model; raise ConflictError if the model has changed.

        Return None if the model is gone: the reply to an earlier removal may have been lost.
        """
        try:
            return await self._set_finalizers(model, _finalizers_of_others(model))
        except NotFoundError:
            return None

    async def _set_finalizers(self, model: Model, finalizers: list[str]) -> dict[str, Any]:
        metadata = {
            "uid": model.uid,
            "resourceVersion": model.resource_version,
            "finalizers": finalizers,
        }
        return await self._api.patch(MODELS, model.namespace, model.name, {"metadata": metadata})

    async def create_job(self, plan: JobPlan) -> JobView | Rejection:
        """Create a Job, or take over the one that an earlier request created.

        A Job of this name that is not as planned is deleted first. Raise ConflictError if the Job
        of this name has just disappeared. Return a Rejection if the API server rejects the Job.

        Once a CRD has dropped the uid of a Job from the status, every Job is rejected here: the
        operator would not recognise its Jobs, and would create more without end.
        """
        if self._crd_is_older:
            return Rejection(OLDER_CRD, 0, self._clock.now())
        manifest = manifests.build(plan, self._settings)
        try:
            try:
                body = await self._api.create(JOBS, plan.namespace, manifest)
            except AlreadyExistsError as exists:
                body = await self._take_over(plan, manifest, exists)
        except AlreadyExistsError as exists:
            message = f"{exists}; it is not the Job to create, and is still being deleted"
            return Rejection(message, exists.code, self._clock.now(), attempt=plan.attempt)
        except ForbiddenError as refused:
            ending = refused.namespace_terminating
            return Rejection(str(refused), refused.code, self._clock.now(), ending)
        except (InvalidError, NotFoundError) as refused:
            return Rejection(str(refused), refused.code, self._clock.now())
        job = JobView.from_body(body)
        self._cache.put_job(job)
        return job

    async def _take_over(
        self, plan: JobPlan, manifest: dict[str, Any], exists: AlreadyExistsError
    ) -> dict[str, Any]:
        """Return the existing Job of this name if it is as planned; otherwise replace it."""
        try:
            body = await self._api.get(JOBS, plan.namespace, plan.name)
        except NotFoundError:
            # The caller would take a NotFoundError to mean that the model is gone.
            raise ConflictError(str(exists), exists.code) from None
        if ownership.is_as_planned(body, manifest):
            return body
        log.warning("Job %s/%s is not the Job to create: deleting it", plan.namespace, plan.name)
        await self.delete_job(JobView.from_body(body))
        return await self._api.create(JOBS, plan.namespace, manifest)

    async def write_status(self, model: Model, status: Status) -> dict[str, Any] | None:
        """Patch the changed status fields; return None if nothing changed.

        Raise ConflictError if another object now has this name, or if the model has changed.
        """
        patch = merge_patch_between(model.raw_status, _plain(status))
        if not patch:
            return None
        # The resourceVersion keeps us from writing into another object of this name: API servers
        # ignore the uid in a status patch of a custom resource.
        metadata = {"uid": model.uid, "resourceVersion": model.resource_version}
        body = {"metadata": metadata, "status": patch}
        written = await self._api.patch(MODELS, model.namespace, model.name, body, sub="status")
        if not self._crd_is_older and _lacks_uid(written.get("status") or {}, patch):
            self._crd_is_older = True
            log.error("no more Jobs are created: %s", OLDER_CRD)
        return written

    async def emit(self, model: Model, event: EventPlan) -> None:
        """Emit an Event; a failure is logged and changes nothing else."""
        about = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": model.namespace,
            "name": model.name,
            "uid": model.uid,
            "resourceVersion": model.resource_version,
        }
        await events.emit(self._api, about, event, self._clock.now())


def _finalizers_of_others(model: Model) -> list[str]:
    return [finalizer for finalizer in model.finalizers if finalizer != names.FINALIZER]


def _lacks_uid(written: Mapping[str, Any], patch: Mapping[str, Any]) -> bool:
    """Whether the API server dropped the uid of a Job, because its CRD does not have the field."""
    return any(
        (patch.get(field) or {}).get("uid") and not (written.get(field) or {}).get("uid")
        for field in ("job", "cleanupJob")
    )


def _plain(status: Status) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def merge_patch_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7386) that turns old into new; empty if they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            changes = merge_patch_between(before, value)
            if changes:
                patch[key] = changes
        elif value != before or key not in old:
            patch[key] = value
    return patch
