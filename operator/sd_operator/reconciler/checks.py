"""Checks of published files: one task per PVC makes the Jobs and reads their results.

The findings are in memory only. After a restart of the operator, the count of checks that found
files missing begins again; missing files that were reported before stay in the models' status.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sd_api import names
from sd_api.check import CheckResult
from sd_api.status import Status
from sd_operator.base.errors import ForbiddenError, InvalidError, NotFoundError
from sd_operator.base.metrics import CheckOutcome, Metrics
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import JOBS, PODS, Api
from sd_operator.reconciler import events, jobs
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.reconciler.supervisor import Supervisor
from sd_operator.resources.check_finding import CheckFinding
from sd_operator.resources.check_job import CheckEnd, check_end
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model
from sd_operator.resources.observed import JobView
from sd_operator.rules import check, volume_jobs
from sd_operator.rules.check import Pause, Served, Start
from sd_operator.rules.decision import EventPlan

log = logging.getLogger(__name__)

FIRST_SECONDS = 600.0
"""The first check of a PVC comes at most this long after the operator's start."""
LATE_SECONDS = 60.0
"""How long after its deadline a check Job may end. Then the check fails and the Job is deleted:
somebody may have suspended the Job.
"""


@dataclass
class _Running:
    """A check that has not ended."""

    name: str
    uid: str
    """The uid of the Job. The result of a Job with another uid does not count."""
    claim: ClaimView
    batch: tuple[Served, ...]
    late_at: float


@dataclass
class _Claim:
    """The state of a PVC between passes."""

    namespace: str
    name: str
    due_at: float
    models: dict[str, Served] = field(default_factory=dict)
    rest: tuple[Served, ...] = ()
    running: _Running | None = None
    is_empty: bool = False
    """Whether the last check found a volume without versions. This emits an Event only once."""


class Checks:
    """Checks every PVC that models are published on, and keeps the findings."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        cache: ObjectCache,
        metrics: Metrics,
        clock: Clock,
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        self._api = api
        self._settings = settings
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        self._wake = wake
        self._claims: dict[str, _Claim] = {}
        self._keys: dict[str, str] = {}
        """The key in `_claims` of each model's PVC, by the model's uid."""
        self._findings: dict[str, CheckFinding] = {}
        self._supervisor = Supervisor(self._pass, "the checks of PVC")

    def finding(self, uid: str) -> CheckFinding | None:
        """Return what the checks found about a model; None if they found nothing."""
        return self._findings.get(uid)

    def show(self, model: Model, status: Status) -> None:
        """Note which version a model has published after a pass; start the checks of its PVC."""
        if not self._settings.check_seconds:
            return
        name = model.claim_or(self._settings.claim_name)
        key = f"{model.namespace}/{name}"
        if self._keys.get(model.uid, key) != key:
            self.forget(model.uid)
        if key not in self._claims:
            first = min(self._settings.check_seconds, FIRST_SECONDS) * random.uniform(0.5, 1)  # noqa: S311 - no secret
            due_at = self._clock.monotonic() + first
            self._claims[key] = _Claim(model.namespace, name, due_at)
        self._keys[model.uid] = key
        self._claims[key].models[model.uid] = Served.of(model, status)
        if key not in self._supervisor:
            self._supervisor.start(key)

    def forget(self, uid: str) -> None:
        """Forget a model that is gone, and its PVC if no other model uses the PVC."""
        self._findings.pop(uid, None)
        key = self._keys.pop(uid, None)
        if key is None:
            return
        self._claims[key].models.pop(uid, None)
        if not self._claims[key].models:
            del self._claims[key]
            self._supervisor.drop(key)

    def leave(self, namespace: str) -> None:
        """Stop the checks in a namespace. A later pass over one of its models starts them again."""
        for claim in [claim for claim in self._claims.values() if claim.namespace == namespace]:
            for uid in list(claim.models):
                self.forget(uid)

    async def close(self) -> None:
        """End all tasks."""
        await self._supervisor.close()

    async def _pass(self, key: str) -> float:
        """Start a check that is due, or read the result of the running one.

        Return the seconds until the next pass.
        """
        claim = self._claims.get(key)
        if claim is None:
            return self._settings.resync_seconds
        if claim.running is None:
            step = check.plan(self._facts(claim), self._settings.check_seconds)
            if isinstance(step, Pause):
                return step.seconds
            await self._start(claim, step)
        elif (end := await self._end(claim.running, claim.namespace)) is not None:
            running, claim.running = claim.running, None
            await self._record(claim, running, end)
        if claim.running is not None:
            return self._settings.poll_seconds
        if not claim.rest:
            claim.due_at = self._clock.monotonic() + self._settings.check_seconds
        return 0.0

    def _facts(self, claim: _Claim) -> check.Claim:
        return check.Claim(
            view=self._cache.claim(claim.namespace, claim.name),
            models=tuple(claim.models.values()),
            due_in=claim.due_at - self._clock.monotonic(),
            rest=claim.rest,
        )

    async def _start(self, claim: _Claim, start: Start) -> None:
        """Create the Job for a batch of models. Its random name cannot be taken in advance."""
        name = f"{names.CHECK_NAME}-{secrets.token_hex(8)}"
        request, loader = start.request(), self._settings.loader
        manifest = volume_jobs.build_check(claim.namespace, name, claim.name, request, loader)
        claim.rest = start.rest
        try:
            body = await self._api.create(JOBS, claim.namespace, manifest)
        except (ForbiddenError, InvalidError, NotFoundError) as error:
            self._fail(claim, start.batch, str(error))
            return
        late = volume_jobs.CHECK_DEADLINE_SECONDS + LATE_SECONDS
        late_at = self._clock.monotonic() + late
        uid = JobView.from_body(body).uid
        claim.running = _Running(name, uid, start.claim, start.batch, late_at)

    async def _end(self, running: _Running, namespace: str) -> CheckEnd | None:
        """Return how the Job ended. None if it has not ended."""
        try:
            job = JobView.from_body(await self._api.get(JOBS, namespace, running.name))
        except NotFoundError:
            return CheckEnd(why=f"Job {running.name} was deleted")
        if job.uid != running.uid:
            return CheckEnd(why=f"Job {running.name} was replaced")
        if job.ended is None:
            if self._clock.monotonic() < running.late_at:
                return None
            await jobs.discard(self._api, namespace, running.name, running.uid)
            return CheckEnd(why=f"Job {running.name} did not end")
        selector = f"batch.kubernetes.io/controller-uid={running.uid}"
        pods = await self._api.list(PODS, namespace, selector)
        return check_end(job, pods.items, len(running.batch))

    async def _record(self, claim: _Claim, running: _Running, end: CheckEnd) -> None:
        """Keep what a check found; start passes over the models whose status must change."""
        result = end.result
        if result is None:
            self._fail(claim, running.batch, end.why)
            return
        known = self._learn(running.batch, result)
        was_empty, claim.is_empty = claim.is_empty, result.outcome == "empty"
        if claim.is_empty:
            self._count(CheckOutcome.EMPTY)
            if not was_empty:
                await self._emit(running.claim, check.empty_event(len(claim.models)))
            return
        self._count(CheckOutcome.MISSING if result.missing else CheckOutcome.COMPLETE)
        if not (result.missing or result.unreadable):
            # Nobody needs its log, and its Pod would keep a deleted PVC from going.
            await jobs.discard(self._api, claim.namespace, running.name, running.uid)
        self._wake(uid for uid, finding in known.items() if finding.is_news)

    def _fail(self, claim: _Claim, batch: tuple[Served, ...], why: str) -> None:
        log.warning("the check of PVC %s/%s failed: %s", claim.namespace, claim.name, why)
        self._count(CheckOutcome.FAILED)
        self._learn(batch, None)

    def _learn(
        self, batch: tuple[Served, ...], result: CheckResult | None
    ) -> dict[str, CheckFinding]:
        """Replace the findings about the models of a batch; return the new findings."""
        known = check.findings(self._findings, batch, result)
        for model in batch:
            self._findings.pop(model.uid, None)
        self._findings |= {uid: found for uid, found in known.items() if uid in self._keys}
        return known

    def _count(self, outcome: CheckOutcome) -> None:
        self._metrics.checks.labels(outcome.value).inc()

    async def _emit(self, claim: ClaimView, event: EventPlan) -> None:
        about = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace,
            "name": claim.name,
            "uid": claim.uid,
        }
        await events.emit(self._api, about, event, self._clock.now())
