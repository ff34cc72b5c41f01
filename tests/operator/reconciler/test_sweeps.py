"""Sweeps on request: each request is followed by one sweep, whatever fails in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from sd_api import names
from sd_operator.base import times
from sd_operator.base.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
)
from sd_operator.base.settings import Settings
from sd_operator.base.times import Clock
from sd_operator.clients.kube import JOBS, LEASES, Api, Resource
from sd_operator.reconciler import supervisor
from sd_operator.reconciler.sweeps import Sweeps
from sd_operator.resources.sweep import SweepLease
from tests.support.rules.observed import NOW

Json = dict[str, Any]
RECORDED = "sd-loader-sweep-1"
"""Name of the Job that fulfilled the last request of a namespace."""
LATER = NOW + timedelta(minutes=5)


class Namespace(Api):
    """An API server with the Jobs and the Lease of a namespace; a test sets which requests fail."""

    def __init__(self, lease: Json | None = None) -> None:
        super().__init__(None)
        self.lease = lease
        self.jobs: list[Json] = []
        self.fails: dict[str, list[Exception]] = {}
        """Errors of requests that are not carried out, by verb and kind, such as "create jobs"."""
        self.loses: dict[str, list[Exception]] = {}
        """Errors of requests that are carried out, but whose response is lost."""

    def ask(self) -> None:
        """Request a sweep, as the gateway does."""
        assert self.lease is not None
        self.lease = self._stored(SweepLease(self.lease).request(LATER))

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Read the Lease or a Job."""
        self._fail("get", resource)
        if resource is JOBS:
            for job in self.jobs:
                if job["metadata"]["name"] == name:
                    return job
            raise NotFoundError("not found", 404)
        assert (resource, name) == (LEASES, names.SWEEP_LEASE)
        if self.lease is None:
            raise NotFoundError("not found", 404)
        return self.lease

    @override
    async def create(
        self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False
    ) -> Json:
        """Create the Lease or a Job."""
        self._fail("create", resource)
        if resource is LEASES:
            self.lease = self._stored(body)
            self._lose("create", resource)
            return self.lease
        if any(job["metadata"]["name"] == body["metadata"]["name"] for job in self.jobs):
            raise AlreadyExistsError("exists", 409)
        uid = f"uid-{len(self.jobs)}"
        job = {**body, "metadata": {**body["metadata"], "uid": uid}}
        self.jobs.append(job)
        self._lose("create", resource)
        return job

    @override
    async def update(self, resource: Resource, namespace: str, name: str, body: Json) -> Json:
        """Replace the Lease; raise a conflict if its version is not the present one."""
        self._fail("update", resource)
        assert self.lease is not None
        assert (resource, name) == (LEASES, names.SWEEP_LEASE)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError("another version", 409)
        self.lease = self._stored(body)
        self._lose("update", resource)
        return self.lease

    def _stored(self, body: Json) -> Json:
        metadata = body["metadata"]
        version = str(int(metadata.get("resourceVersion", "0")) + 1)
        return {**body, "metadata": {**metadata, "resourceVersion": version}}

    def _fail(self, verb: str, resource: Resource) -> None:
        if errors := self.fails.get(f"{verb} {resource.plural}"):
            raise errors.pop(0)

    def _lose(self, verb: str, resource: Resource) -> None:
        if errors := self.loses.get(f"{verb} {resource.plural}"):
            raise errors.pop(0)


def asked(**fields: Any) -> Namespace:
    """Return a namespace with an open request; with fields, it also has the last sweep's Job."""
    empty = {**SweepLease.empty(), "metadata": {"name": names.SWEEP_LEASE}}
    api = Namespace(SweepLease(empty).answer(RECORDED, "recorded"))
    api.ask()
    if fields:
        api.jobs = [sweep(**fields)]
    return api


def sweep(name: str = RECORDED, uid: str = "recorded", **fields: Any) -> Json:
    """Return a sweep's Job that began an hour ago; fields replace those of body and metadata."""
    metadata = {
        "name": name,
        "namespace": "art",
        "uid": uid,
        "labels": {names.LABEL_NAME: names.SWEEP_NAME},
        "creationTimestamp": times.stamp(NOW - timedelta(hours=1)),
        **fields.pop("metadata", {}),
    }
    return {"metadata": metadata, **fields}


def run(api: Namespace, *, until: Callable[[], bool], serve: bool = True) -> None:
    """Run an operator until a condition holds.

    It begins to serve the namespace, or, without `serve`, sees a change of its Lease.
    """

    async def work() -> None:
        sweeps = Sweeps(api, Settings(), Clock(lambda: NOW, lambda: 0.0))
        (sweeps.serve if serve else sweeps.lease_changed)("art")
        async with asyncio.timeout(10):
            while not until():  # noqa: ASYNC110 - the condition is a state of the API
                await asyncio.sleep(0.01)
        await sweeps.close()

    asyncio.run(work())


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_SECONDS", 0.01)


def is_done(api: Namespace) -> bool:
    """Whether the Lease exists without an open request."""
    return api.lease is not None and not SweepLease(api.lease).is_open


def recorded(api: Namespace) -> tuple[str, str]:
    """Return name and uid of the Job that the Lease records."""
    assert api.lease is not None
    uid = api.lease["metadata"]["annotations"]["sd-operator.dev/sweep-uid"]
    return api.lease["spec"]["holderIdentity"], uid


def test_lease_is_created_with_the_first_model() -> None:
    """The operator creates the Lease without a request, because the gateway may not create it."""
    api = Namespace()
    run(api, until=lambda: is_done(api))
    assert api.lease is not None
    assert api.lease["metadata"]["name"] == "sd-operator-sweep"
    assert api.jobs == []


@pytest.mark.parametrize("serve", [True, False], ids=["after a restart", "by the watch"])
def test_request_is_followed_by_a_sweep(serve: bool) -> None:
    """The Lease records the Job, which is the same as that of the chart's CronJob."""
    api = asked()
    run(api, until=lambda: is_done(api), serve=serve)
    (job,) = api.jobs
    assert job["metadata"]["name"].startswith("sd-loader-sweep-")
    assert job["metadata"]["labels"] == {names.LABEL_NAME: names.SWEEP_NAME}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["sweep", "--store", "/models", "--delete"]
    assert api.lease is not None
    assert recorded(api) == (job["metadata"]["name"], job["metadata"]["uid"])
    spec = api.lease["spec"]
    assert spec["acquireTime"] == spec["renewTime"] == "2026-01-02T03:09:05.000000Z"


COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"status": {}}, id="running"),
        pytest.param(
            {"status": COMPLETE, "metadata": {"creationTimestamp": times.stamp(NOW)}},
            id="ended within a minute",
        ),
    ],
)
def test_last_sweep_answers_a_request(fields: Json) -> None:
    """If the last sweep's Job runs or just began, the Lease records it for the new request, too."""
    api = asked(**fields)
    run(api, until=lambda: is_done(api))
    assert len(api.jobs) == 1
    assert recorded(api) == (RECORDED, "recorded")


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(sweep(status=COMPLETE), id="ended"),
        pytest.param(sweep(spec={"suspend": True}), id="suspended"),
        pytest.param(sweep(metadata={"deletionTimestamp": times.stamp(NOW)}), id="being deleted"),
        pytest.param(sweep(uid="another"), id="the recorded name"),
        pytest.param(sweep("foreign"), id="the recorded uid and the label"),
        pytest.param(sweep("foreign", "another"), id="the label"),
        pytest.param(sweep("foreign", "another", spec={"suspend": True}), id="a suspended label"),
        pytest.param(
            sweep(f"sd-loader-sweep-{int(NOW.timestamp()) // 60}", "another"), id="a name by time"
        ),
        pytest.param(
            sweep(
                "sd-operator-sweep-1",
                "another",
                metadata={
                    "ownerReferences": [
                        {
                            "apiVersion": "batch/v1",
                            "kind": "CronJob",
                            "name": "sd-operator-sweep",
                            "uid": "cron",
                            "controller": True,
                        }
                    ]
                },
            ),
            id="the owner",
        ),
    ],
)
def test_job_that_only_looks_like_a_running_sweep_answers_no_request(job: Json) -> None:
    """A new sweep starts: this Job does not run, or the Lease records another name or uid."""
    api = asked()
    api.jobs = [job]
    run(api, until=lambda: is_done(api))
    _, made = api.jobs
    assert recorded(api) == (made["metadata"]["name"], made["metadata"]["uid"])


def test_job_that_the_lease_names_without_its_uid_answers_no_request() -> None:
    """A new sweep starts if the Lease has a Job's name but not its uid, as if written by hand."""
    api = asked()
    assert api.lease is not None
    del api.lease["metadata"]["annotations"]
    api.jobs = [sweep()]
    run(api, until=lambda: is_done(api))
    assert len(api.jobs) == 2


def test_names_of_sweeps_cannot_be_foreseen() -> None:
    """Two operators that get a request at the same time give their Jobs different names."""
    made = []
    for api in (asked(), asked()):
        run(api, until=lambda api=api: is_done(api))
        made += [job["metadata"]["name"] for job in api.jobs]
    assert len(set(made)) == 2


@pytest.mark.parametrize(
    ("kind", "is_lost"),
    [
        ("get leases", False),
        ("get jobs", False),
        ("create jobs", False),
        ("create jobs", True),
        ("update leases", False),
        ("update leases", True),
    ],
)
def test_failed_step_is_repeated_and_sweeps_once(kind: str, is_lost: bool) -> None:
    """The repeated request has the same Job name, so a lost response leads to no second Job."""
    api = asked()
    failures = {kind: [UnavailableError("away"), UnavailableError("away")]}
    api.fails, api.loses = ({}, failures) if is_lost else (failures, {})
    run(api, until=lambda: is_done(api))
    assert len(api.jobs) == 1


def test_request_during_a_pass_is_not_forgotten() -> None:
    """A request that arrives during a pass conflicts with the Lease's update, and is fulfilled."""
    api = asked()
    api.fails = {"update leases": [ConflictError("another version", 409)]}
    run(api, until=lambda: is_done(api))
    assert len(api.jobs) == 1, "the running sweep answers both"


def test_another_operator_may_create_the_lease_first() -> None:
    """If the creation of the Lease fails because it exists, the existing Lease is used."""
    api = Namespace()
    api.loses = {"create leases": [AlreadyExistsError("exists", 409)]}
    run(api, until=lambda: is_done(api))


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("namespaces art not found", 404),
        ForbiddenError("art is being terminated", namespace_terminating=True),
    ],
    ids=["gone", "terminating"],
)
def test_namespace_that_is_gone_is_left_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator logs nothing and does not try again."""
    api = Namespace()
    api.fails = {"create leases": [error, AssertionError("tried again")]}
    with caplog.at_level(logging.INFO):
        run(api, until=lambda: len(api.fails["create leases"]) == 1)
    assert not caplog.records


def test_missing_right_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the namespace. The pass is repeated, because the right may be given later."""
    api = asked()
    api.fails = {"get leases": [ForbiddenError("no right to get leases")]}
    run(api, until=lambda: is_done(api))
    assert "a pass over the sweeps of namespace art failed: no right to get leases" in caplog.text
