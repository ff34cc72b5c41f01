"""Sweeps on request: one task per namespace makes the Job that the namespace's Lease asks for."""

from __future__ import annotations

import logging

from sd_api import names
from sd_operator.base.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
)
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import JOBS, LEASES, Api, Json
from sd_operator.reconciler.supervisor import Supervisor
from sd_operator.resources.observed import JobState, JobView
from sd_operator.resources.sweep import SweepLease
from sd_operator.rules import manifests

log = logging.getLogger(__name__)


class Sweeps:
    """Creates the Lease of every served namespace, and fulfils the requests that it gets."""

    def __init__(self, api: Api, settings: Settings, clock: Clock) -> None:
        self._api = api
        self._settings = settings
        self._clock = clock
        self._supervisor = Supervisor(self._pass, "the sweeps of namespace")

    def serve(self, namespace: str) -> None:
        """Serve a namespace from now on, because it has a model."""
        if namespace not in self._supervisor:
            self._supervisor.start(namespace)

    def lease_changed(self, namespace: str) -> None:
        """Read the Lease of a namespace soon."""
        self._supervisor.start(namespace)

    async def close(self) -> None:
        """End all tasks."""
        await self._supervisor.close()

    async def _pass(self, namespace: str) -> float:
        """Fulfil the request of the Lease if it is open; return the seconds until the next pass."""
        try:
            lease = SweepLease(await self._lease(namespace))
        except (NotFoundError, ForbiddenError) as error:
            if isinstance(error, ForbiddenError) and not error.namespace_terminating:
                raise
            # The namespace is gone. If it comes back, its first model starts this task again.
            self._supervisor.drop(namespace)
            return self._settings.resync_seconds
        if lease.is_open:
            job = await self._job(namespace)
            log.info("a sweep of namespace %s was requested: Job %s", namespace, job)
            try:
                await self._api.update(LEASES, namespace, names.SWEEP_LEASE, lease.answer(job))
            except ConflictError:
                return 0.0  # a new request came in the meantime
        return self._settings.resync_seconds

    async def _lease(self, namespace: str) -> Json:
        """Read the Lease; create it if it is missing."""
        try:
            return await self._api.get(LEASES, namespace, names.SWEEP_LEASE)
        except NotFoundError:
            pass
        try:
            return await self._api.create(LEASES, namespace, SweepLease.empty())
        except AlreadyExistsError:
            return await self._api.get(LEASES, namespace, names.SWEEP_LEASE)

    async def _job(self, namespace: str) -> str:
        """Return the name of the running sweep, also one of the chart's CronJob, or of a new one.

        A Job of the same minute counts as well: if this pass is repeated because the operator was
        killed, it finds the Job that it made before.
        """
        label = f"{names.LABEL_NAME}={names.SWEEP_NAME}"
        for body in (await self._api.list(JOBS, namespace, label)).items:
            job = JobView.from_body(body)
            if job.state is JobState.RUNNING:
                return job.name
        name = f"{names.SWEEP_NAME}-{int(self._clock.now().timestamp()) // 60}"
        manifest = manifests.build_sweep(
            namespace, name, self._settings.claim_name, self._settings.loader
        )
        try:
            await self._api.create(JOBS, namespace, manifest)
        except AlreadyExistsError:
            log.debug("Job %s exists already", name)
        return name
