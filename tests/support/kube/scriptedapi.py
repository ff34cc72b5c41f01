"""An API in memory that holds one model and raises the errors that a test sets.

For example:

    api = Script(body())
    api.refuses = InvalidError("limits: must be at least the request", 422)
    controller = Controller(api, settings, Metrics(), lambda: NOW)
    controller.see(api.model)
    await api.until(lambda conditions: "Stalled" in conditions)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from sd_operator.base.errors import AlreadyExistsError, NotFoundError
from sd_operator.clients.kube import EVENTS, JOBS, MODELS, Api, Listing, Resource
from sd_operator.standalone.patch import merge_patch

Json = dict[str, Any]


class Script(Api):
    """An API with one model, its Jobs and its Events; the PVC does not exist."""

    def __init__(self, model: Json) -> None:
        super().__init__(None)
        self.model = model
        self.asked: list[str] = []
        self.jobs: list[Json] = []
        self.events: list[tuple[str, str]] = []
        self.refuses: Exception | None = None
        """The error that the creation of a Job raises."""
        self.away: Exception | None = None
        """The error that a patch raises before it is applied."""
        self.lost: Exception | None = None
        """The error that a patch raises after it is applied."""
        self._patched = asyncio.Event()

    async def until(self, holds: Callable[[dict[str, str]], bool]) -> None:
        """Wait until the check of the conditions (a map from type to reason) holds."""
        while not holds(self.conditions):
            self._patched.clear()
            await self._patched.wait()

    @property
    def conditions(self) -> dict[str, str]:
        """The reasons of the model's conditions, by type."""
        return {one["type"]: one["reason"] for one in self.model["status"].get("conditions", [])}

    @property
    def reasons(self) -> Counter[str]:
        """The number of Events for each reason."""
        return Counter(reason for reason, _ in self.events)

    def change(self, patch: Json) -> Json:
        """Change the model as an API server does."""
        metadata = self.model["metadata"]
        version = str(int(metadata["resourceVersion"]) + 1)
        generation = metadata["generation"] + ("spec" in patch)
        own = {"resourceVersion": version, "generation": generation}
        self.model = merge_patch(merge_patch(self.model, patch), {"metadata": own})
        return self.model

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the model or a Job; nothing else exists."""
        self.asked.append(f"get {resource.plural}")
        if resource is MODELS:
            return self.model
        job = self._job(name) if resource is JOBS else None
        if job is None:
            raise NotFoundError(f"{resource.plural} {name} not found", 404)
        return job

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        """List the Jobs; nothing else exists."""
        return Listing(list(self.jobs) if resource is JOBS else [], "9")

    @override
    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create a Job or record an Event; for a Job, raise `refuses` if it is set."""
        self.asked.append(f"create {resource.plural}")
        if resource is JOBS and self.refuses is not None:
            raise self.refuses
        if resource is EVENTS:
            self.events.append((body["reason"], body["message"]))
        if resource is JOBS and self._job(body["metadata"]["name"]) is not None:
            raise AlreadyExistsError("it exists", 409)
        made = {"uid": f"uid-{len(self.asked)}", "resourceVersion": "9"}
        body = body | {"metadata": body["metadata"] | made}
        if resource is JOBS:
            self.jobs.append(body)
        return body

    @override
    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete a Job."""
        self.asked.append(f"delete {resource.plural}")
        self.jobs = [job for job in self.jobs if job["metadata"]["uid"] != uid]

    def _job(self, name: str) -> Json | None:
        return next((job for job in self.jobs if job["metadata"]["name"] == name), None)

    @override
    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
    ) -> Json:
        """Apply a patch to the model's status."""
        self.asked.append(f"patch {resource.plural}")
        if self.away is not None:
            raise self.away
        self.change({"status": body.get("status", {})})
        self._patched.set()
        if self.lost is not None:
            raise self.lost
        return self.model
