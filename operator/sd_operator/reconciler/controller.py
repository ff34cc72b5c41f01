"""One pass over one model: observe, decide, and carry out the decision."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from typing import Any

from sd_api.status import Status, WebhookEvent
from sd_operator.base import logs
from sd_operator.base.errors import ConflictError, ForbiddenError, NotFoundError
from sd_operator.base.metrics import Metrics, PassResult
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import MODELS, SECRETS, Api
from sd_operator.reconciler import jobs, measure
from sd_operator.reconciler.admission import AdmissionQueue
from sd_operator.reconciler.cache import ObjectCache, is_newer, lean
from sd_operator.reconciler.checks import Checks
from sd_operator.reconciler.delivery import Webhooks
from sd_operator.reconciler.execute import Executor
from sd_operator.reconciler.gather import Gatherer, LastProgress
from sd_operator.reconciler.memory import Memory
from sd_operator.reconciler.supervisor import Supervisor
from sd_operator.reconciler.sweeps import Sweeps
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model, load_job_uid
from sd_operator.resources.observed import Observed, Rejection
from sd_operator.rules.decide import decide
from sd_operator.rules.decision import (
    Act,
    AddFinalizer,
    CreateJob,
    Decided,
    Decision,
    DeleteJobs,
    Refresh,
    Release,
    Wait,
    WebhookCall,
)
from sd_operator.rules.input import Input
from sd_operator.rules.queue import Limits, Waiting
from sd_operator.rules.status import with_created_job

log = logging.getLogger(__name__)

PASSES_MAX = 8
"""Limit of passes without a pause. More would mean that the rules contradict each other."""
GONE_MAX = 10_000
"""How many uids of deleted models are remembered. They take 1 MB."""


@dataclass(frozen=True)
class _Next:
    """When the next pass over a model comes, if no event starts one earlier."""

    at_once: bool = False
    wake_after: float | None = None
    """Seconds; None means at the resync."""


_AT_ONCE = _Next(at_once=True)


class Controller:
    """Reconciles all models, each in a task of the supervisor."""

    def __init__(self, api: Api, settings: Settings, metrics: Metrics, clock: Clock) -> None:
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.cache = ObjectCache()
        self.supervisor = Supervisor(self._reconcile)
        self._memories: dict[str, Memory] = {}
        self._gone: dict[str, None] = {}
        self._gatherer = Gatherer(api, settings, self.cache, clock)
        self._executor = Executor(api, settings, self.cache, clock)
        self._webhooks = Webhooks(settings, settings.guard(), self._read_secret, clock)
        self.sweeps = Sweeps(api, settings, clock)
        self._checks = Checks(api, settings, self.cache, metrics, clock, self.supervisor.wake)
        self._calls: set[asyncio.Task[None]] = set()
        self._queue = AdmissionQueue(
            Limits.from_settings(settings), self.cache, self.supervisor.wake
        )
        metrics.load_jobs.set_function(self.cache.active_jobs)
        metrics.queue_length.set_function(lambda: len(self._queue) + self.cache.suspended_jobs())

    async def fill(self, namespace: str | None) -> None:
        """Fill the cache for a namespace, or for all. Call this before `see` for its models."""
        await self._gatherer.fill(namespace)

    async def close(self) -> None:
        """End all tasks and connections."""
        self._queue.close()
        await self.supervisor.close()
        await self.sweeps.close()
        await self._checks.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._webhooks.close()

    def see(self, body: dict[str, Any]) -> None:
        """Store a model unless this version or a newer one is known, and start a pass over it."""
        uid = body["metadata"]["uid"]
        if uid in self._gone:
            return  # a watch that begins at an old version repeats its events
        memory = self._memories.get(uid)
        if memory is None:
            memory = self._memories[uid] = Memory(body, self._next_resync())
        elif not is_newer(_version(body), _version(memory.body)):
            return
        elif body["metadata"].get("generation") != memory.body["metadata"].get("generation"):
            memory.rejection = None  # the rejected Job was made from an earlier spec
        self._keep(memory, body)
        self.supervisor.start(uid)

    def forget(self, uid: str) -> None:
        """Forget a deleted model for good: no other model will have its uid."""
        self._gone[uid] = None
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._memories.pop(uid, None)
        self.cache.forget(uid)
        self._metrics.forget(uid)
        self._checks.forget(uid)
        self._queue.leave(uid)
        self._queue.changed()
        self.supervisor.drop(uid)

    def leave(self, namespace: str) -> None:
        """Stop the sweeps and checks of a namespace that is no longer served.

        A last pass over each of its models starts, and reads the model again.
        """
        self.sweeps.leave(namespace)
        self._checks.leave(namespace)
        for uid, memory in self._memories.items():
            if memory.body["metadata"]["namespace"] == namespace:
                memory.resync_at = 0.0
                self.supervisor.start(uid)

    def job_changed(self, model_uid: str) -> None:
        """Start a pass over the model of a changed Job; schedule an evaluation of the queue."""
        self.supervisor.wake([model_uid])
        self._queue.changed()

    def claim_changed(self, claim: ClaimView) -> None:
        """Start a pass over each model whose last pass used this PVC."""
        changed = (claim.namespace, claim.name)
        self.supervisor.wake(
            [uid for uid, memory in self._memories.items() if memory.claim == changed]
        )

    async def _reconcile(self, uid: str) -> float:
        started = self._clock.monotonic()
        result = PassResult.ERROR
        try:
            delay = await self._until_settled(uid)
            result = PassResult.OK
        finally:
            self._metrics.reconciles.labels(result.value).inc()
            self._metrics.reconcile_seconds.observe(self._clock.monotonic() - started)
        return delay

    async def _until_settled(self, uid: str) -> float:
        """Run passes until none is due at once; return the seconds until the next pass."""
        for _ in range(PASSES_MAX):
            memory = self._memories.get(uid)
            if memory is None:
                return self._settings.resync_seconds
            try:
                after = await self._pass(memory)
            except NotFoundError:
                log.info("the model is gone")
                self.forget(uid)
                return self._settings.resync_seconds
            except ConflictError:
                # Another version, or another model of this name: reading it tells which.
                memory.resync_at = 0.0
                continue
            except ForbiddenError:
                if not await self._finds_namespace_ending(memory):
                    raise
                continue
            if not after.at_once:
                resync = memory.resync_at - self._clock.monotonic()
                wake = resync if after.wake_after is None else min(after.wake_after, resync)
                return max(0.05, wake)
        raise RuntimeError(f"{PASSES_MAX} passes led nowhere")

    async def _pass(self, memory: Memory) -> _Next:
        fresh = False
        if memory.namespace_ends:
            await self._read(memory)
        elif self._clock.monotonic() >= memory.resync_at:
            fresh = await self._resync(memory)
        body = memory.body
        model = Model.from_body(body)
        logs.about(f"{model.namespace}/{model.name}", model.wanted)
        memory.claim = (model.namespace, model.claim_or(self._settings.claim_name))
        observed = await self._observe(model, memory, fresh)
        decided = self._decide(model, observed)
        if isinstance(decided.decision, Refresh):
            await self._refresh(model)
            observed = await self._observe(model, memory, fresh=True)
            decided = self._decide(model, observed)
        if not decided.uses_admission:
            self._queue.leave(model.uid)
        elif not observed.admitted:
            admission = await self._queue.ask(Waiting.of(model))
            if memory.body is not body:
                return _AT_ONCE  # the model has changed in the meantime
            observed = replace(observed, admitted=admission.admitted, position=admission.position)
            decided = self._decide(model, observed)
        if memory.decided != str(decided):
            memory.decided = str(decided)
            log.info("%s", decided)
        return await self._execute(model, memory, decided.decision)

    def _decide(self, model: Model, observed: Observed) -> Decided:
        return decide(Input(model, observed, self._settings, self._clock.now()))

    async def _finds_namespace_ending(self, memory: Memory) -> bool:
        """Return whether a request was forbidden because the model's namespace is being deleted.

        False if that was known before, or if the model is not being deleted.
        """
        metadata = memory.body["metadata"]
        if memory.namespace_ends or "deletionTimestamp" not in metadata:
            return False
        memory.namespace_ends = await self._gatherer.namespace_ends(metadata["namespace"])
        return memory.namespace_ends

    async def _observe(self, model: Model, memory: Memory, fresh: bool) -> Observed:
        if memory.namespace_ends:
            return Observed(namespace_ends=True)
        observed = await self._gatherer.observe(model, memory.progress)
        admission = self._queue.admission(model.uid)
        return replace(
            observed,
            admitted=admission.admitted,
            position=admission.position,
            rejection=memory.rejection,
            finding=self._checks.finding(model.uid),
            deliveries=tuple(memory.deliveries),
            in_flight=frozenset(memory.in_flight),
            fresh=fresh,
        )

    async def _execute(self, model: Model, memory: Memory, decision: Decision) -> _Next:
        match decision:
            case Refresh():
                raise AssertionError("no rule refreshes fresh views")
            case Wait():
                self._show(model, model.status)
                return _Next(wake_after=decision.seconds)
            case AddFinalizer():
                self._take(memory, await self._executor.add_finalizer(model))
                return _AT_ONCE
            case Release():
                await self._release(model, memory, decision)
                return _Next()
            case Act():
                return await self._act(model, memory, decision)

    async def _release(self, model: Model, memory: Memory, release: Release) -> None:
        body = await self._executor.remove_finalizer(model)
        self._take(memory, body)
        if body is None or not body["metadata"].get("finalizers"):
            self.forget(model.uid)  # its deletion event may be missed
        for job in release.jobs:
            await jobs.discard(self._api, job.namespace, job.name, job.uid)
        for event in release.events:
            await self._executor.emit(model, event)
        for call in release.calls:
            self._call(model, memory, model.status, call)

    async def _act(self, model: Model, memory: Memory, act: Act) -> _Next:
        status = act.status
        match act.job:
            case DeleteJobs(unwanted):
                if await self._has_changed(model, memory):
                    return _AT_ONCE
                for job in unwanted:
                    await self._executor.delete_job(job)
                    self._queue.changed()
            case CreateJob(plan):
                memory.progress = LastProgress()
                memory.rejection = None
                created = await self._executor.create_job(plan)
                if isinstance(created, Rejection):
                    memory.rejection = created
                    if created.code == 403:
                        await self._finds_namespace_ending(memory)
                    return _AT_ONCE
                status = with_created_job(status, plan, created.uid)
        self._take(memory, await self._executor.write_status(model, status))
        memory.deliveries = [
            delivery for delivery in memory.deliveries if delivery not in act.recorded
        ]
        for event in act.events:
            await self._executor.emit(model, event)
        for call in act.calls:
            self._call(model, memory, status, call)
        self._show(model, status)
        if act.ended is not None:
            measure.count(self._metrics, model.namespace, status, act.ended)
        return _Next(isinstance(act.job, DeleteJobs), act.wake_after)

    def _take(self, memory: Memory, body: dict[str, Any] | None) -> None:
        """Store the model as the API server returned it, unless a newer version is known."""
        if body and is_newer(_version(body), _version(memory.body)):
            self._keep(memory, body)

    def _keep(self, memory: Memory, body: dict[str, Any]) -> None:
        memory.body = lean(body)
        self.cache.record(body["metadata"]["uid"], load_job_uid(body))

    async def _read(self, memory: Memory) -> None:
        """Read the model again; raise NotFoundError if it is gone."""
        metadata = memory.body["metadata"]
        body = await self._api.get(MODELS, metadata["namespace"], metadata["name"])
        if body["metadata"]["uid"] != metadata["uid"]:
            raise NotFoundError("another model has its name", 404)
        self._take(memory, body)

    async def _resync(self, memory: Memory) -> bool:
        """Read the model, its PVC and, if needed, its Jobs and Pods again.

        Jobs and Pods are not needed if the wanted version is published and the model is not being
        deleted. Return whether they were read.
        """
        await self._read(memory)
        memory.resync_at = self._next_resync()
        model = Model.from_body(memory.body)
        settled = model.status.artifact and model.status.artifact.load_hash == model.wanted
        if settled and model.deleted_at is None:
            await self._gatherer.refresh_claim(model)
            return False
        await self._refresh(model)
        return True

    async def _has_changed(self, model: Model, memory: Memory) -> bool:
        """Read the model again; return whether it changed. Always False if it is being deleted."""
        if model.deleted_at is not None:  # its Jobs are never wanted, so it is not read
            return False
        await self._read(memory)
        now = Model.from_body(memory.body)
        before = (model.wanted, model.spec, model.deleted_at)
        return (now.wanted, now.spec, now.deleted_at) != before

    async def _refresh(self, model: Model) -> None:
        """Read a model's Jobs, Pods and PVC again, and schedule an evaluation of the queue."""
        await self._gatherer.refresh(model)
        # The events of these changes will not do it: the cache has the changes already.
        self._queue.changed()

    def _call(self, model: Model, memory: Memory, status: Status, call: WebhookCall) -> None:
        """Start a task that calls a webhook and then starts a pass over the model."""

        async def run() -> None:
            started = self._clock.monotonic()
            try:
                delivery = await self._webhooks.deliver(call, model, status)
                memory.deliveries.append(delivery)
                self._metrics.deliveries.labels(delivery.outcome.value).inc()
                self._metrics.delivery_seconds.observe(self._clock.monotonic() - started)
            finally:
                memory.in_flight.discard(call.entry.id)
            self.supervisor.wake([model.uid])

        if call.entry.event is not WebhookEvent.DELETED:
            memory.in_flight.add(call.entry.id)
        task = asyncio.create_task(run(), name=f"webhook {call.entry.id}")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _read_secret(self, namespace: str, name: str) -> dict[str, Any]:
        return await self._api.get(SECRETS, namespace, name)

    def _show(self, model: Model, status: Status) -> None:
        """Update the model's gauges, unless it was forgotten in this pass."""
        if model.uid in self._memories:
            self._checks.show(model, status)
            self._metrics.show(model.uid, measure.state(model, status))

    def _next_resync(self) -> float:
        # The jitter spreads the models, which all begin at the operator's start.
        return self._clock.monotonic() + self._settings.resync_seconds * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


def _version(body: dict[str, Any]) -> str:
    return str(body["metadata"].get("resourceVersion") or "")
