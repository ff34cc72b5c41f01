"""One pass over one model: gather what is observed, plan, carry the plan out."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field, replace
from typing import Any

from sd_api.status import WebhookEvent
from sd_operator.base import logs
from sd_operator.base.errors import ConflictError, NotFoundError
from sd_operator.base.metrics import Metrics, ModelState
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import MODELS, SECRETS, Api
from sd_operator.reconciler.admission import Turns
from sd_operator.reconciler.cache import Cache, is_newer
from sd_operator.reconciler.delivery import Webhooks
from sd_operator.reconciler.execute import Executor
from sd_operator.reconciler.gather import Gatherer, Peek
from sd_operator.reconciler.supervisor import Supervisor
from sd_operator.resources.model import Model
from sd_operator.resources.observed import ClaimView, Delivery, Observed, Refusal
from sd_operator.rules import decide
from sd_operator.rules.decision import Call, FinalizerChange, Plan
from sd_operator.rules.queue import Limits, Waiting

log = logging.getLogger(__name__)

PASSES_MAX = 8
GONE_MAX = 10_000
"""So many deleted models are remembered, 1 MB of uids."""


@dataclass
class _Memory:
    """What is kept of a model between passes. Nothing here outlives the process."""

    body: dict[str, Any]
    resync_at: float
    claim: tuple[str, str] | None = None
    """Namespace and name of the claim that the last pass looked at; None before the first pass."""
    peek: Peek = field(default_factory=Peek)
    refusal: Refusal | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    in_flight: set[str] = field(default_factory=set)


class Controller:
    """Keeps every model of the cluster, each by one task of the supervisor."""

    def __init__(self, api: Api, settings: Settings, metrics: Metrics, clock: Clock) -> None:
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.cache = Cache()
        self.supervisor = Supervisor(self._reconcile)
        self._memories: dict[str, _Memory] = {}
        self._gone: dict[str, None] = {}
        self._gatherer = Gatherer(api, settings, self.cache, clock)
        self._executor = Executor(api, settings, self.cache, clock)
        self._webhooks = Webhooks(settings, settings.guard(), self._read_secret, clock)
        self._calls: set[asyncio.Task[None]] = set()
        self._turns = Turns(Limits.from_settings(settings), self.cache, self.supervisor.wake)
        metrics.load_jobs.set_function(self.cache.active_jobs)
        metrics.queue_length.set_function(lambda: len(self._turns) + self.cache.suspended_jobs())

    async def fill(self) -> None:
        """Learn what is there of Jobs, Pods and claims; to be done before any model is seen."""
        await self._gatherer.fill()

    async def close(self) -> None:
        """End all tasks and connections."""
        self._turns.close()
        await self.supervisor.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._webhooks.close()

    def see(self, body: dict[str, Any]) -> None:
        """Note a model, unless something newer is known: our own writes come back late."""
        uid = body["metadata"]["uid"]
        if uid in self._gone:
            return  # a watch that begins at an old version tells of its life once more
        memory = self._memories.get(uid)
        if memory is None:
            self._memories[uid] = _Memory(_lean(body), self._next_resync())
        elif is_newer(_version(body), _version(memory.body)):
            if body["metadata"].get("generation") != memory.body["metadata"].get("generation"):
                memory.refusal = None  # it was about the former spec
            memory.body = _lean(body)
        else:
            return
        self.supervisor.start(uid)

    def forget(self, uid: str) -> None:
        """A model is gone: there will be no other of its uid."""
        self._gone[uid] = None
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._memories.pop(uid, None)
        self.cache.forget(uid)
        self._metrics.forget(uid)
        self._turns.leave(uid)
        self._turns.changed()
        self.supervisor.drop(uid)

    def job_changed(self, model_uid: str) -> None:
        """A Job came, went or got further: wake its model, and whoever may load after it."""
        self.supervisor.wake([model_uid])
        self._turns.changed()

    def claim_changed(self, claim: ClaimView) -> None:
        """Wake the models of a claim that was created, deleted or replaced."""
        changed = (claim.namespace, claim.name)
        self.supervisor.wake(
            [uid for uid, memory in self._memories.items() if memory.claim == changed]
        )

    async def _reconcile(self, uid: str) -> float:
        started = self._clock.monotonic()
        result = "error"
        try:
            delay = await self._until_settled(uid)
            result = "ok"
        finally:
            self._metrics.reconciles.labels(result).inc()
            self._metrics.reconcile_seconds.observe(self._clock.monotonic() - started)
        return delay

    async def _until_settled(self, uid: str) -> float:
        """Pass after pass while one leads to the next; returns the seconds until another."""
        for _ in range(PASSES_MAX):
            memory = self._memories.get(uid)
            if memory is None:
                return self._settings.resync_seconds
            try:
                plan, again = await self._pass(memory)
            except NotFoundError:
                log.info("the model is gone")
                self.forget(uid)
                return self._settings.resync_seconds
            except ConflictError:
                # Another version, or a namesake; looking tells which.
                memory.resync_at = 0.0
                continue
            if not again:
                resync = memory.resync_at - self._clock.monotonic()
                wake = resync if plan.wake_after is None else min(plan.wake_after, resync)
                return max(0.05, wake)
        raise RuntimeError(f"{PASSES_MAX} passes led nowhere")

    async def _pass(self, memory: _Memory) -> tuple[Plan, bool]:
        """One pass; tells whether another has to follow at once."""
        fresh = False
        if self._clock.monotonic() >= memory.resync_at:
            fresh = await self._resync(memory)
        body = memory.body
        model = Model.from_body(body)
        logs.about(f"{model.namespace}/{model.name}", model.wanted)
        memory.claim = (model.namespace, model.claim_or(self._settings.claim_name))
        observed = await self._observe(model, memory, fresh)
        plan = decide.plan(model, observed, self._settings, self._clock.now())
        if plan.look:
            await self._look(model)
            observed = await self._observe(model, memory, fresh=True)
            plan = decide.plan(model, observed, self._settings, self._clock.now())
        if plan.wants_turn and not observed.admitted:
            turn = await self._turns.ask(_waiting(model))
            if memory.body is not body:
                return plan, True  # it has changed while it waited for the answer
            observed = replace(observed, admitted=turn.admitted, place=turn.place)
            plan = decide.plan(model, observed, self._settings, self._clock.now())
        elif not plan.wants_turn:
            self._turns.leave(model.uid)
        return plan, await self._execute(model, memory, plan)

    async def _observe(self, model: Model, memory: _Memory, fresh: bool) -> Observed:
        observed = await self._gatherer.observe(model, memory.peek)
        turn = self._turns.turn(model.uid)
        return replace(
            observed,
            admitted=turn.admitted,
            place=turn.place,
            refusal=memory.refusal,
            deliveries=tuple(memory.deliveries),
            in_flight=frozenset(memory.in_flight),
            fresh=fresh,
        )

    async def _execute(self, model: Model, memory: _Memory, plan: Plan) -> bool:
        log.debug("%s", plan.rule)
        if plan.delete and await self._has_changed(model, memory):
            return True
        for job in plan.delete:
            await self._executor.delete_job(job)
            self._turns.changed()
        if plan.finalizer is not None:
            changed = await self._executor.change_finalizer(model, plan.finalizer)
            self._take(memory, changed)
            if plan.finalizer is FinalizerChange.ADD:
                return True
            if changed is None or not changed["metadata"].get("finalizers"):
                self.forget(model.uid)  # gone by that; the event of it may go unseen
        if plan.create is not None:
            memory.refusal = await self._executor.create_job(plan.create)
            memory.peek = Peek()
            if memory.refusal is not None:
                return True
        if plan.finalizer is None:  # else it is about to be gone, and its status stays
            self._take(memory, await self._executor.write_status(model, plan.status))
        memory.deliveries = [one for one in memory.deliveries if one not in plan.noted]
        for event in plan.events:
            await self._executor.emit(model, event)
        for call in plan.calls:
            self._call(model, memory, plan, call)
        self._show(model, plan)
        return bool(plan.delete)

    def _take(self, memory: _Memory, body: dict[str, Any] | None) -> None:
        """Note what the API server answered, unless something newer is known."""
        if body and is_newer(_version(body), _version(memory.body)):
            memory.body = _lean(body)

    async def _read(self, memory: _Memory) -> None:
        """Read the model anew; raises NotFoundError where it is gone."""
        metadata = memory.body["metadata"]
        body = await self._api.get(MODELS, metadata["namespace"], metadata["name"])
        if body["metadata"]["uid"] != metadata["uid"]:
            raise NotFoundError("another model has its name", 404)
        self._take(memory, body)

    async def _resync(self, memory: _Memory) -> bool:
        """Read the model anew, and its surroundings where something is under way."""
        await self._read(memory)
        memory.resync_at = self._next_resync()
        model = Model.from_body(memory.body)
        settled = model.status.artifact and model.status.artifact.load_hash == model.wanted
        if settled and model.deleted_at is None:
            await self._gatherer.look_at_claim(model)
            return False
        await self._look(model)
        return True

    async def _has_changed(self, model: Model, memory: _Memory) -> bool:
        """Whether other Jobs may be wanted now: another operator may have seen a newer spec."""
        if model.deleted_at is not None:
            return False
        await self._read(memory)
        now = Model.from_body(memory.body)
        return (now.wanted, now.spec, now.deleted_at) != (
            model.wanted,
            model.spec,
            model.deleted_at,
        )

    async def _look(self, model: Model) -> None:
        """Read a model's surroundings anew; what is seen so is no news when its event comes."""
        await self._gatherer.look(model)
        self._turns.changed()

    def _call(self, model: Model, memory: _Memory, plan: Plan, call: Call) -> None:
        """Call a webhook in a task of its own; the outcome wakes the model."""

        async def run() -> None:
            started = self._clock.monotonic()
            try:
                delivery = await self._webhooks.deliver(call, model, plan.status)
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

    def _show(self, model: Model, plan: Plan) -> None:
        """Tell the metrics; a model that has just gone is told no more."""
        if model.uid not in self._memories:
            return
        status = plan.status
        artifact = status.artifact
        self._metrics.show(
            model.uid,
            ModelState(
                namespace=model.namespace,
                name=model.name,
                phase=status.phase.value if status.phase else "",
                reason=status.reason or "",
                artifact_bytes=artifact.size_bytes if artifact else 0,
                shared_bytes=artifact.shared_bytes if artifact else 0,
            ),
        )
        if plan.ended is not None:
            model_type = model.model_type.value if model.model_type else ""
            ended = plan.ended
            self._metrics.loads.labels(model_type, ended.outcome, ended.reason).inc()
            for stage, seconds in ended.stages:
                self._metrics.load_seconds.labels(model_type, stage).observe(seconds)
            self._metrics.source_bytes.inc(ended.source_bytes)

    def _next_resync(self) -> float:
        # Jitter spreads the models that an operator's start has brought together.
        return self._clock.monotonic() + self._settings.resync_seconds * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


def _waiting(model: Model) -> Waiting:
    priority = model.spec.priority if model.spec else 0
    return Waiting(model.uid, model.namespace, priority, model.created)


def _lean(body: dict[str, Any]) -> dict[str, Any]:
    """A body without what only takes memory."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {**body, "metadata": metadata}


def _version(body: dict[str, Any]) -> str:
    return str(body["metadata"].get("resourceVersion") or "")
