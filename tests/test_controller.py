"""Passes over models, with an API server whose answers come when the test wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from observed import NOW, body, claim, published
from typing_extensions import override

from sd_api.status import Phase, Status
from sd_operator.cache import Cache
from sd_operator.controller import Controller
from sd_operator.execute import Executor
from sd_operator.jobs import plan_load
from sd_operator.kube import (
    JOBS,
    MODELS,
    AlreadyExistsError,
    Api,
    ConflictError,
    InvalidError,
    NotFoundError,
    Resource,
)
from sd_operator.metrics import Metrics
from sd_operator.model import Model
from sd_operator.settings import Settings

Json = dict[str, Any]


class Script(Api):
    """An API server with one model, no claim any more, and answers that a real one rarely gives."""

    def __init__(self, model: Json) -> None:
        super().__init__(None)
        self.model = model
        self.asked: list[str] = []
        self.refuses: Exception | None = None
        self._patched = asyncio.Event()

    async def until(self, holds: Callable[[dict[str, str]], bool]) -> None:
        """Wait until the model's conditions, type to reason, are so."""
        while not holds(_conditions(self.model)):
            self._patched.clear()
            await self._patched.wait()

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Nothing but the model is there."""
        self.asked.append(f"get {resource.plural}")
        if resource is not MODELS:
            raise NotFoundError(f"{resource.plural} {name} not found", 404)
        return self.model

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> list[Json]:
        """Nothing else is there."""
        return []

    @override
    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Refuse Jobs as told; take everything else."""
        self.asked.append(f"create {resource.plural}")
        if resource is JOBS and self.refuses is not None:
            raise self.refuses
        metadata = body["metadata"] | {"uid": "job", "resourceVersion": "9"}
        return body | {"metadata": metadata}

    @override
    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
    ) -> Json:
        """Apply it to the model's status."""
        self.asked.append(f"patch {resource.plural}")
        version = str(int(self.model["metadata"]["resourceVersion"]) + 1)
        metadata = self.model["metadata"] | {"resourceVersion": version}
        status = self.model["status"] | body.get("status", {})
        self.model = self.model | {"metadata": metadata, "status": status}
        self._patched.set()
        return self.model


def _conditions(model: Json) -> dict[str, str]:
    return {one["type"]: one["reason"] for one in model["status"].get("conditions", [])}


def keep(
    api: Script,
    scenario: Callable[[Controller], Coroutine[Any, Any, None]],
    **settings: Any,
) -> None:
    """Run a controller that knows a claim and the model."""

    async def run() -> None:
        controller = Controller(api, Settings(**settings), Metrics())
        controller.cache.put_claim(claim())
        controller.see(api.model)
        try:
            async with asyncio.timeout(10):
                await scenario(controller)
        finally:
            await controller.close()

    asyncio.run(run())


def test_a_claim_that_went_unseen_is_missed_at_the_resync() -> None:
    """A gap in the watch hides its deletion, also from models that are Ready."""
    api = Script(body(published()))

    async def scenario(_: Controller) -> None:
        await api.until(lambda found: found.get("Ready") == "ClaimNotFound")

    keep(api, scenario, resync_seconds=0.1)
    assert api.asked[:2] == ["get stablediffusionmodels", "get persistentvolumeclaims"]


def test_a_mended_spec_is_tried_at_once() -> None:
    """What was refused was the Job of the former spec."""
    api = Script(body())
    api.refuses = InvalidError("limits: must be at least the request", 422)

    async def scenario(controller: Controller) -> None:
        await api.until(lambda found: "Stalled" in found)
        api.refuses = None
        metadata = api.model["metadata"] | {"generation": 2, "resourceVersion": "90"}
        api.model = api.model | {"metadata": metadata}
        controller.see(api.model)
        await api.until(lambda found: "Reconciling" in found)

    keep(api, scenario)
    assert api.asked.count("create jobs") == 2


def test_a_job_that_goes_while_it_is_looked_at_is_tried_again() -> None:
    """Not found is the Job then, not the model: it must not be forgotten."""
    api = Script(body())
    api.refuses = AlreadyExistsError("it exists", 409)
    model, settings = Model.from_body(api.model), Settings()

    async def create() -> None:
        job = plan_load(model, settings, "models", 0)
        await Executor(api, settings, Cache()).create_job(job, NOW)

    with pytest.raises(ConflictError):
        asyncio.run(create())


def test_a_status_that_cannot_be_read_is_replaced() -> None:
    """Left as it is, it would stay unreadable, and the model would be loaded for ever."""
    api = Script(body({"phase": "Dreaming", "startTime": "2026-01-01T00:00:00Z"}))
    sent: list[Json] = []

    async def write() -> None:
        executor = Executor(api, Settings(), Cache())
        answer = await executor.write_status(Model.from_body(api.model), Status(phase=Phase.READY))
        sent.append((answer or {})["status"])

    asyncio.run(write())
    assert sent[0]["phase"] == "Ready"
    assert sent[0]["startTime"] is None
