"""Gathers the observed state of a model, from the cache or, if needed, from the API server."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from sd_api import names
from sd_api.wire import Progress
from sd_operator.base.errors import ApiError, ForbiddenError, NotFoundError
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import CLAIMS, JOBS, MODELS, NAMESPACES, OURS, PODS, Api
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.reconciler.job_warnings import JobWarnings
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model, load_job_uid
from sd_operator.resources.observed import JobState, JobView, Observed, PodView
from sd_operator.rules import ownership

log = logging.getLogger(__name__)


@dataclass
class LastProgress:
    """The progress that was last read from a running container's log."""

    progress: Progress | None = None
    container: tuple[str, str] = ("", "")
    """The container, by its Pod's uid and its name."""
    read_at: float = 0.0
    """When the log was read, by the monotonic clock."""


class Gatherer:
    """Makes the `Observed` of a model, from the cache alone unless a Job of the model runs.

    For a running Job, Events or a container's log are read from the API server, too.
    """

    def __init__(self, api: Api, settings: Settings, cache: ObjectCache, clock: Clock) -> None:
        self._clock = clock
        self._api = api
        self._settings = settings
        self._cache = cache
        self._warnings = JobWarnings(api, clock)

    async def fill(self, namespace: str | None) -> None:
        """Fill the cache with the Jobs, Pods and PVCs of a namespace, or of all namespaces.

        The models are listed, too, for the uids of their Jobs: the queue counts only those Jobs.
        """
        for body in (await self._api.list(MODELS, namespace)).items:
            self._cache.record(body["metadata"]["uid"], load_job_uid(body))
        for body in (await self._api.list(JOBS, namespace, OURS)).items:
            self._cache.put_job(JobView.from_body(body))
        for body in (await self._api.list(PODS, namespace, OURS)).items:
            self._cache.put_pod(PodView.from_body(body))
        for body in (await self._api.list(CLAIMS, namespace)).items:
            self._cache.put_claim(ClaimView.from_body(body))

    async def namespace_ends(self, name: str) -> bool:
        """Whether a namespace is gone or being deleted. False if the operator may not read it."""
        try:
            body = await self._api.get(NAMESPACES, "", name)
        except NotFoundError:
            return True
        except ForbiddenError:
            return False
        return "deletionTimestamp" in body["metadata"]

    async def refresh(self, model: Model) -> None:
        """Read a model's Jobs, Pods and PVC into the cache again; an event may have been missed."""
        selector = f"{names.LABEL_MODEL_UID}={model.uid}"
        jobs = await self._api.list(JOBS, model.namespace, selector)
        pods = await self._api.list(PODS, model.namespace, selector)
        job_views = [JobView.from_body(job) for job in jobs.items]
        self._cache.replace_jobs(model.uid, job_views, jobs.version)
        pod_views = [PodView.from_body(pod) for pod in pods.items]
        self._cache.replace_pods(model.uid, pod_views, pods.version)
        await self.refresh_claim(model)

    async def refresh_claim(self, model: Model) -> None:
        """Read a model's PVC into the cache again; its deletion may have been missed."""
        name = model.claim_or(self._settings.claim_name)
        try:
            claim = ClaimView.from_body(await self._api.get(CLAIMS, model.namespace, name))
        except NotFoundError:
            known = self._cache.claim(model.namespace, name)
            if known is not None:
                self._cache.drop_claim(known)
        else:
            self._cache.put_claim(claim)

    async def observe(self, model: Model, last: LastProgress) -> Observed:
        """Return a model's observed state.

        last: the progress that was last read. It is updated with that of a running load.
        """
        observed = ownership.observed(
            model,
            self._cache.jobs(model.namespace, model.uid),
            self._cache.pods(model.namespace, model.uid),
            self._cache.claim(model.namespace, model.claim_or(self._settings.claim_name)),
        )
        job = observed.cleanup_job or observed.load_job
        if job is None or job.state is not JobState.RUNNING:
            return observed
        pods = observed.pods_of(job)
        if job.suspended:
            return observed
        if not pods:
            return replace(observed, job_warning=await self._warnings.newest(job))
        if pods[0].may_write and pods[0].running is None:
            if (claim := observed.unbound_claim(pods[0])) is not None:
                warning = await self._warnings.newest_of_claim(claim, pods[0])
                return replace(observed, claim_warning=warning)
            return replace(observed, pod_warning=await self._warnings.newest_of_pod(pods[0]))
        if job.role == names.ROLE_REMOVE:
            return observed
        return replace(observed, progress=await self._progress(pods[0], last))

    async def _progress(self, pod: PodView, last: LastProgress) -> Progress | None:
        """Return the running container's progress; read its log once per `poll_seconds` at most."""
        container = pod.running
        if container is None:
            return None
        now = self._clock.monotonic()
        if last.container != (pod.uid, container.name):
            last.progress, last.container = None, (pod.uid, container.name)
        elif now - last.read_at < self._settings.poll_seconds * 0.9:
            return last.progress
        last.read_at = now
        try:
            line = await self._api.last_log_line(pod.namespace, pod.name, container.name)
        except ApiError as refused:
            log.debug("no log of Pod %s/%s: %s", pod.namespace, pod.name, refused)
        else:
            last.progress = Progress.decode(line) or last.progress
        return last.progress
