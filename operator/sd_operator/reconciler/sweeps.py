"""Sweeps on request: one task per namespace makes the Job that the namespace's Lease asks for."""

from __future__ import annotations

import contextlib
import logging
import secrets

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
from sd_operator.resources.observed import JobView
from sd_operator.resources.sweep import SweepLease
from sd_operator.rules import volume_jobs

log = logging.getLogger(__name__)


class Sweeps:
    """Creates the Lease of every served namespace, and fulfils the requests that it gets."""

    def __init__(self, api: Api, settings: Settings, clock: Clock) -> None:
        self._api = api
        self._settings = settings
        self._clock = clock
        self._names: dict[str, str] = {}
        """Name of the Job for each namespace's open request. It is random, so that nobody can
        create a Job of this name in advance.
        """
        self._supervisor = Supervisor(self._pass, "the sweeps of namespace")

    def serve(self, namespace: str) -> None:
        """Start the task of a namespace, because it has a model."""
        if namespace not in self._supervisor:
            self._supervisor.start(namespace)

    def leave(self, namespace: str) -> None:
        """Stop the task of a namespace. An event of its models or of its Lease starts it again."""
        self._supervisor.drop(namespace)

    def lease_changed(self, namespace: str) -> None:
        """Start a pass over a namespace, which reads its Lease."""
        self._supervisor.start(namespace)

    async def close(self) -> None:
        """End all tasks."""
        await self._supervisor.close()

    async def _pass(self, namespace: str) -> float:
        """Make a Job if the Lease has an open request; return the seconds until the next pass."""
        try:
            lease = SweepLease(await self._lease(namespace))
        except (NotFoundError, ForbiddenError) as error:
            if isinstance(error, ForbiddenError) and not error.namespace_terminating:
                raise
            # The namespace is gone. If it comes back, its first model starts this task again.
            self._supervisor.drop(namespace)
            return self._settings.resync_seconds
        if lease.is_open:
            job = await self._job(namespace, lease)
            log.info("a sweep of namespace %s was requested: Job %s", namespace, job.name)
            answer = lease.answer(job.name, job.uid)
            try:
                await self._api.update(LEASES, namespace, names.SWEEP_LEASE, answer)
            except ConflictError:
                return 0.0  # a new request came in the meantime
        self._names.pop(namespace, None)
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

    async def _job(self, namespace: str, lease: SweepLease) -> JobView:
        """Return the last sweep's Job if it fulfils this request, too; otherwise create one."""
        if lease.holder:
            with contextlib.suppress(NotFoundError):
                job = JobView.from_body(await self._api.get(JOBS, namespace, lease.holder))
                if lease.is_fulfilled_by(job, self._clock.now()):
                    return job
        name = self._names.setdefault(namespace, f"{names.SWEEP_NAME}-{secrets.token_hex(8)}")
        manifest = volume_jobs.build_sweep(
            namespace, name, self._settings.claim_name, self._settings.loader
        )
        try:
            body = await self._api.create(JOBS, namespace, manifest)
        except AlreadyExistsError:
            # An earlier pass made it, since nobody else knew the name.
            body = await self._api.get(JOBS, namespace, name)
        return JobView.from_body(body)
