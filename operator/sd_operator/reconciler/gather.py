"""Gathers what is observed of a model: from the cache, and from the API server where need be."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from sd_api import names
from sd_api.wire import Progress
from sd_operator.base.settings import Settings
from sd_operator.clients.kube import CLAIMS, JOBS, OURS, PODS, Api, ApiError, NotFoundError
from sd_operator.reconciler.cache import Cache
from sd_operator.reconciler.job_warnings import JobWarnings
from sd_operator.resources.model import Model
from sd_operator.resources.observed import (
    ClaimView,
    JobState,
    JobView,
    Observed,
    PodView,
)

log = logging.getLogger(__name__)


@dataclass
class Peek:
    """What the log of a running container last said of its progress, and when that was read."""

    progress: Progress | None = None
    container: tuple[str, str] = ("", "")
    progress_at: float = 0.0


class Gatherer:
    """Makes an `Observed`. In the steady state it asks the API server for nothing."""

    def __init__(self, api: Api, settings: Settings, cache: Cache) -> None:
        self._api = api
        self._settings = settings
        self._cache = cache
        self._warnings = JobWarnings(api)

    async def fill(self) -> None:
        """The one LIST at start-up: Jobs, Pods and claims of all namespaces served."""
        for namespace in self._settings.namespaces or (None,):
            for body in (await self._api.list(JOBS, namespace, OURS)).items:
                self._cache.put_job(JobView.from_body(body))
            for body in (await self._api.list(PODS, namespace, OURS)).items:
                self._cache.put_pod(PodView.from_body(body))
            for body in (await self._api.list(CLAIMS, namespace)).items:
                self._cache.put_claim(ClaimView.from_body(body))

    async def look(self, model: Model) -> None:
        """Read a model's Jobs, Pods and claim anew; an event may have been missed."""
        selector = f"{names.LABEL_MODEL_UID}={model.uid}"
        jobs = await self._api.list(JOBS, model.namespace, selector)
        pods = await self._api.list(PODS, model.namespace, selector)
        found = [JobView.from_body(job) for job in jobs.items]
        self._cache.replace_jobs(model.uid, found, jobs.version)
        shown = [PodView.from_body(pod) for pod in pods.items]
        self._cache.replace_pods(model.uid, shown, pods.version)
        await self.look_at_claim(model)

    async def look_at_claim(self, model: Model) -> None:
        """Read a model's claim anew; a gap in a watch hides its deletion."""
        name = self._claim_name(model)
        try:
            claim = ClaimView.from_body(await self._api.get(CLAIMS, model.namespace, name))
        except NotFoundError:
            known = self._cache.claim(model.namespace, name)
            if known is not None:
                self._cache.drop_claim(known)
        else:
            self._cache.put_claim(claim)

    async def observe(self, model: Model, peek: Peek) -> Observed:
        """What is known of a model; a running load's last log line is read now and then."""
        observed = Observed(
            jobs=self._cache.jobs(model.namespace, model.uid),
            pods=self._cache.pods(model.namespace, model.uid),
            claim=self._cache.claim(model.namespace, self._claim_name(model)),
        )
        running = [job for job in observed.jobs if job.state is JobState.RUNNING]
        if not running:
            return observed
        job = max(running, key=lambda one: (one.created, one.attempt))
        pods = observed.pods_of(job)
        if job.suspended:
            return observed
        if not pods:
            return replace(observed, job_warning=await self._warnings.newest(job))
        if job.role == names.ROLE_REMOVE:
            return observed
        return replace(observed, progress=await self._progress(pods[0], peek))

    def _claim_name(self, model: Model) -> str:
        return model.claim_name or self._settings.claim_name

    async def _progress(self, pod: PodView, peek: Peek) -> Progress | None:
        """The last log line of a running container, read at most once in `poll_seconds`."""
        container = pod.running
        if container is None:
            return None
        now = time.monotonic()
        if peek.container != (pod.uid, container.name):
            peek.progress, peek.container = None, (pod.uid, container.name)
        elif now - peek.progress_at < self._settings.poll_seconds * 0.9:
            return peek.progress
        peek.progress_at = now
        try:
            line = await self._api.last_log_line(pod.namespace, pod.name, container.name)
        except ApiError as refused:
            log.debug("no log of Pod %s/%s: %s", pod.namespace, pod.name, refused)
        else:
            peek.progress = Progress.decode(line) or peek.progress
        return peek.progress
