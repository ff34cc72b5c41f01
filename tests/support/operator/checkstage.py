"""A stage for the checks of a PVC: a namespace whose Jobs end at once, and a clock to set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from typing_extensions import override

from sd_api.check import CheckResult
from sd_api.wire import LoadResult
from sd_operator.base import times
from sd_operator.base.errors import (
    NotFoundError,
)
from sd_operator.base.metrics import Metrics
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import EVENTS, JOBS, PODS, Api, Listing, Resource
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.reconciler.checks import Checks
from sd_operator.resources.model import Model
from tests.support.rules.observed import NOW, body, claim, published

Json = dict[str, Any]
INTERVAL = 1000
SETTINGS = Settings(check_seconds=INTERVAL, poll_seconds=0.01)
COMPLETE = CheckResult(outcome="checked")
MISSING = CheckResult(outcome="checked", missing=(0,))
EMPTY = CheckResult(outcome="empty")
MESSAGES = {"Complete": "Reached expected number of succeeded pods", "Failed": "it was too slow"}
"""The messages of the conditions with which Jobs end."""


class Cluster(Api):
    """A namespace whose Jobs end at once, with the results that a test sets."""

    def __init__(self) -> None:
        super().__init__(None)
        self.jobs: dict[str, Json] = {}
        self.pods: list[Json] = []
        self.events: list[Json] = []
        self.results: list[CheckResult | LoadResult | str] = []
        """What the next Jobs report; the last one repeats."""
        self.fails: list[Exception] = []
        """Errors of the next requests to create a Job."""
        self.names: list[str] = []
        """The names of all Jobs that were requested, whether or not they were created."""
        self.ends: Callable[[Json], None] = self.succeed
        """What happens to a Job once it is created."""
        self.deleted: list[str] = []

    def succeed(self, job: Json, **changes: Any) -> None:
        """Let a Job complete with one Pod."""
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        self.end(job, "Complete")
        self.pods.append(pod(job, result, **changes))

    def end(self, job: Json, condition: str) -> None:
        """Let a Job end with this condition."""
        ended = {"type": condition, "status": "True", "lastTransitionTime": times.stamp(NOW)}
        job["status"] = {"conditions": [ended | {"message": MESSAGES[condition]}]}

    @override
    async def create(
        self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False
    ) -> Json:
        """Create a Job or an Event."""
        if resource is EVENTS:
            self.events.append(body)
            return body
        assert resource is JOBS
        name = body["metadata"]["name"]
        self.names.append(name)
        if self.fails:
            raise self.fails.pop(0)
        assert name not in self.jobs
        job = {**body, "metadata": {**body["metadata"], "uid": f"uid-of-{name}"}}
        self.jobs[name] = job
        self.ends(job)
        return {**job, "status": {}}

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Read a Job."""
        assert resource is JOBS
        if name not in self.jobs:
            raise NotFoundError("not found", 404)
        return self.jobs[name]

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        """List the Pods with the label of a Job."""
        assert resource is PODS
        key, _, value = labels.partition("=")
        return Listing([one for one in self.pods if one["metadata"]["labels"][key] == value], "1")

    @override
    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Record the deletion of a Job, which stays readable."""
        assert (resource, uid) == (JOBS, self.jobs[name]["metadata"]["uid"])
        self.deleted.append(name)


def pod(job: Json, result: CheckResult | LoadResult | str, **changes: Any) -> Json:
    """Return the Pod of a Job that ended with this result."""
    uid = job["metadata"]["uid"]
    text = result if isinstance(result, str) else result.encode()
    ended = {"exitCode": 0, "message": text} | changes.pop("ended", {})
    owner = {"kind": "Job", "uid": uid, "controller": True}
    return {
        "metadata": {
            "name": f"{job['metadata']['name']}-abcde",
            "labels": {"batch.kubernetes.io/controller-uid": uid},
            "ownerReferences": [owner | changes.pop("owner", {})],
        },
        "status": {
            "phase": "Succeeded",
            "containerStatuses": [{"name": "check", "state": {"terminated": ended}}],
        }
        | changes,
    }


class Stage:
    """An operator's checks, with a clock that a test sets."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.api = Cluster()
        self.api.results = [COMPLETE]
        self.seconds = 0.0
        self.woken: list[str] = []
        self.metrics = Metrics()
        cache = ObjectCache()
        cache.put_claim(claim())
        self.cache = cache
        clock = Clock(lambda: NOW + timedelta(seconds=self.seconds), lambda: self.seconds)
        self.checks = Checks(self.api, settings, cache, self.metrics, clock, self.woken.extend)

    def show(self, number: int = 0, **artifact: Any) -> Model:
        """Show the checks a Ready model."""
        return self.show_status(published(**artifact), number)

    def show_status(self, status: Json, number: int = 0) -> Model:
        """Show the checks a model with this status."""
        resource = body(status)
        resource["metadata"] |= {"uid": f"uid-{number:03}", "name": f"m{number}"}
        model = Model.from_body(resource)
        self.checks.show(model, model.status)
        return model

    async def run(self, jobs: int = 1) -> None:
        """Start the check of each PVC, and wait until this many Jobs of checks have ended."""
        before = self.outcomes()
        self.seconds += INTERVAL + 1
        for key in list(self.checks._claims):
            self.checks._supervisor.start(key)
        async with asyncio.timeout(10):
            while self.outcomes() < before + jobs:  # noqa: ASYNC110 - another task counts
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)

    def outcomes(self) -> float:
        """Return how many checks have ended, whatever their outcome."""
        return sum(self.counted().values())

    def counted(self) -> dict[str, float]:
        """Return how many checks have ended, by outcome."""
        (family,) = self.metrics.checks.collect()
        return {
            sample.labels["outcome"]: sample.value
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def missed(self, number: int = 0) -> int | None:
        """Return in how many checks in a row a model's files were missing; None if unknown."""
        found = self.checks.finding(f"uid-{number:03}")
        return found.missed if found is not None else None


def acting(play: Callable[[Stage], Any], settings: Settings = SETTINGS) -> Stage:
    """Play a scene on a new stage, close the stage's checks, and return the stage."""

    async def work() -> Stage:
        stage = Stage(settings)
        try:
            await play(stage)
        finally:
            await stage.checks.close()
        return stage

    return asyncio.run(work())


def of_another_job(job: Json) -> Json:
    """Return a Pod that has the label of this Job, but whose owner is another Job."""
    return pod(job, MISSING, owner={"uid": "another"})


FORGED: dict[str, Callable[[Cluster, Json], None]] = {
    "a second Pod that claims to be the Job's": lambda api, job: (
        api.succeed(job),
        api.pods.append(pod(job, MISSING)),
    ),
    "no Pod": lambda api, job: api.end(job, "Complete"),
    "only a Pod with the Job's label": lambda api, job: (
        api.end(job, "Complete"),
        api.pods.append(of_another_job(job)),
    ),
    "an owner that does not control the Pod": lambda api, job: api.succeed(
        job, owner={"controller": False}
    ),
    "a Pod that has failed": lambda api, job: api.succeed(job, phase="Failed"),
    "an exit code other than 0": lambda api, job: api.succeed(job, ended={"exitCode": 1}),
    "another container": lambda api, job: api.succeed(
        job,
        containerStatuses=[
            {"name": "x", "state": {"terminated": {"exitCode": 0, "message": MISSING.encode()}}}
        ],
    ),
    "a container that still runs": lambda api, job: api.succeed(
        job, containerStatuses=[{"name": "check", "state": {"running": {}}}]
    ),
    "a Pod without status": lambda api, job: api.succeed(job, containerStatuses=None),
    "a Job that failed": lambda api, job: (api.succeed(job), api.end(job, "Failed")),
    "a Job that was deleted": lambda api, job: api.jobs.pop(job["metadata"]["name"]),
    "a Job that was deleted and made again": lambda api, job: (
        api.succeed(job),
        api.jobs.update(
            {job["metadata"]["name"]: job | {"metadata": job["metadata"] | {"uid": "another"}}}
        ),
    ),
}
