"""A model with a webhook, an operator that can stop at any time, and a clock to move forward.

The controller, its webhook calls and the receivers are real; the API server is in memory.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from devkit.loopback import Loopback
from sd_api import names
from sd_api.status import WebhookEvent
from sd_operator.base.metrics import Metrics
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.reconciler.controller import Controller
from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules import outbox
from tests.support.kube.scriptedapi import Json, Script
from tests.support.rules.observed import LOADED, NOW, UID, answered, body, claim, pod

SOON = 15.0


@dataclass
class Stage:
    """One model, its operator and the current time."""

    api: Script
    settings: Settings
    moment: datetime = NOW
    controller: Controller = field(init=False)
    jobs: list[JobView] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    """Generation and start of the load of each Job."""

    def start(self) -> None:
        """Start an operator that sees the present objects."""
        clock = Clock(lambda: self.moment, time.monotonic)
        self.controller = Controller(self.api, self.settings, Metrics(), clock)
        self.controller.cache.put_claim(claim())
        for made in self.api.jobs:
            self.controller.cache.put_job(JobView.from_body(made))
        for job in self.jobs:
            self._show(job)
        self.controller.see(self.api.model)

    async def restart(self) -> None:
        """Stop the operator, whatever it is doing, and start another."""
        await self.controller.close()
        self.start()

    async def load(self, reload: str = "") -> None:
        """Complete a load, after a new `reload` annotation if given; the model is then Ready."""
        if reload:
            annotations = {names.ANNOTATION_RELOAD: reload}
            self.controller.see(self.api.change({"metadata": {"annotations": annotations}}))
        await self.until(lambda: len(self.api.jobs) == len(self.jobs) + 1)
        made = JobView.from_body(self.api.jobs[-1])
        done = replace(made, state=JobState.COMPLETE, ended=self.moment, resource_version="99")
        self.jobs.append(done)
        self._show(done)
        self.controller.job_changed(UID)
        await self.until(lambda: self.ready and self.status["loadHash"] == done.load_hash)
        self.loads.append(f"{self.api.model['metadata']['generation']}/{self.status['startTime']}")

    def edit(self, **spec: Any) -> None:
        """Change the spec."""
        self.controller.see(self.api.change({"spec": spec}))

    def let_pass(self, seconds: float) -> None:
        """Move the clock forward and let the operator run a pass for the model."""
        self.moment += timedelta(seconds=seconds)
        self.controller.supervisor.wake([UID])

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until the check holds, for up to SOON seconds of real time."""
        async with asyncio.timeout(SOON):
            while not holds():  # noqa: ASYNC110 - threads and other tasks change it
                await asyncio.sleep(0.01)

    async def tried(self, attempts: int) -> None:
        """Wait until each call in the outbox has had this many attempts."""
        await self.until(lambda: {one.get("attempts", 0) for one in self.outbox} == {attempts})

    async def told(self) -> None:
        """Wait until the outbox is empty because all calls were delivered."""
        await self.until(lambda: not self.outbox)
        assert self.api.conditions["WebhookDelivered"] == "Delivered"

    @property
    def status(self) -> Json:
        """The model's status."""
        status: Json = self.api.model["status"]
        return status

    @property
    def ready(self) -> bool:
        """Whether the model is Ready and not reconciling."""
        return self.api.conditions.get("Ready") == "Loaded" and (
            "Reconciling" not in self.api.conditions
        )

    @property
    def outbox(self) -> list[Json]:
        """The calls that are not delivered yet."""
        entries: list[Json] = self.status.get("webhook", {}).get("outbox", [])
        return entries

    @property
    def ids(self) -> set[str]:
        """The ids of all webhook calls for the loads so far."""
        events = (WebhookEvent.LOAD_STARTED, WebhookEvent.LOADED)
        return {
            outbox.webhook_id(UID, job.load_hash, event, load)
            for job, load in zip(self.jobs, self.loads, strict=True)
            for event in events
        }

    def _show(self, job: JobView) -> None:
        self.controller.cache.put_job(job)
        self.controller.cache.put_pod(pod(job, answered("convert", LOADED), phase="Succeeded"))


def play(
    scenario: Callable[[Stage], Coroutine[Any, Any, None]], url: str, **settings: Any
) -> Stage:
    """Run a scenario with one model that has a webhook."""
    stage = Stage(Script(body(webhook=url)), Settings(**settings))

    async def run() -> None:
        stage.start()
        try:
            await scenario(stage)
        finally:
            await stage.controller.close()

    asyncio.run(run())
    return stage


def allowing(*hosts: str) -> frozenset[str]:
    """Return the value of the setting allowed_hosts that allows these hosts."""
    return frozenset(hosts)


@contextmanager
def nobody() -> Iterator[str]:
    """Yield a host that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


@contextmanager
def endless(head: bytes, more: bytes) -> Iterator[str]:
    """Yield a host whose response never ends."""
    with Loopback(lambda _: itertools.chain([head], itertools.repeat(more))) as server:
        yield server.host
