"""Status patches have only changed fields; writes never change another object of the same name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from sd_api.status import Phase, Status
from sd_operator.base.errors import ConflictError
from sd_operator.base.settings import Settings
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.clients.kube import Api, Resource
from sd_operator.reconciler.cache import ObjectCache
from sd_operator.reconciler.execute import Executor, merge_patch_between
from sd_operator.resources.model import Model
from sd_operator.resources.observed import JobView, Rejection
from sd_operator.rules.decision import JobPlan
from sd_operator.rules.manifests import build, plan_load, plan_remove
from tests.support.kube.cluster import Cluster
from tests.support.kube.scriptedapi import Script
from tests.support.rules.observed import body, claim, model

SCALARS = st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), SCALARS, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), SCALARS | inner, max_size=3),
    max_leaves=8,
)


def apply(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a merge patch as a server does (RFC 7386, section 2)."""
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            current = result.get(name)
            result[name] = apply(current if isinstance(current, Mapping) else {}, value)
        else:
            result[name] = value
    return result


@given(OBJECTS, OBJECTS)
def test_the_patch_turns_the_old_object_into_the_new_one(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    """The patch is empty only if the two objects are equal."""
    patch = merge_patch_between(old, new)
    assert apply(old, patch) == new
    assert bool(patch) == (old != new)


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        pytest.param({"a": 1}, {"a": 1}, {}, id="equal"),
        pytest.param({"a": 1, "b": 2}, {"a": 1}, {"b": None}, id="removed"),
        pytest.param({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}, id="deep"),
        pytest.param({"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 3]}, id="lists are replaced"),
        pytest.param({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}, id="an object for a number"),
    ],
)
def test_a_status_patch_has_only_changed_fields(
    old: dict[str, Any], new: dict[str, Any], patch: dict[str, Any]
) -> None:
    """Each row gives the old status, the new status and the patch."""
    assert merge_patch_between(old, new) == patch


PLAN = plan_load(model(), Settings(), claim(), 0)


def create(api: Script) -> JobView | Rejection:
    """Create the first Job of the model."""
    executor = Executor(api, Settings(), ObjectCache(), SYSTEM_CLOCK)
    return asyncio.run(executor.create_job(PLAN))


def existing(api: Script, **metadata: Any) -> dict[str, Any]:
    """Put a Job like the planned one onto the API server."""
    job = build(PLAN, Settings())
    job["metadata"] |= {"uid": "existing", "resourceVersion": "3", **metadata}
    api.jobs = [job]
    return job


def test_a_job_whose_reply_was_lost_is_taken_over() -> None:
    """The repeated request returns the Job that the first request created."""
    api = Script(body())
    existing(api)
    job = create(api)
    assert isinstance(job, JobView)
    assert job.uid == "existing"
    assert api.asked == ["create jobs", "get jobs"]


def test_a_foreign_job_is_replaced() -> None:
    """A Job that is not as planned is deleted with its uid as precondition, then created again."""
    api = Script(body())
    existing(api, ownerReferences=[])
    job = create(api)
    assert isinstance(job, JobView)
    assert [one["metadata"]["uid"] for one in api.jobs] == [job.uid]
    assert job.uid != "existing"
    assert api.asked == ["create jobs", "get jobs", "delete jobs", "create jobs"]


def test_a_job_that_has_ended_is_replaced() -> None:
    """The ended Job of an earlier load of the same version is deleted, and a new one is created.

    It remains if the spec was changed and then changed back.
    """
    api = Script(body())
    existing(api)["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    job = create(api)
    assert isinstance(job, JobView)
    assert job.uid != "existing"
    assert api.asked == ["create jobs", "get jobs", "delete jobs", "create jobs"]


class Pinned(Script):
    """An API server with a Job whose finalizer keeps it."""

    @override
    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Set the Job's deletionTimestamp; the Job stays."""
        self.jobs[0]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def test_a_foreign_job_that_cannot_be_deleted_only_holds_its_name() -> None:
    """The rejection has status 409 and the attempt, so that the next attempt has another name."""
    api = Pinned(body())
    existing(api, ownerReferences=[])
    for _ in range(2):
        rejection = create(api)
        assert isinstance(rejection, Rejection)
        assert (rejection.code, rejection.attempt) == (409, 0)
        assert "is not the Job to create, and is still being deleted" in rejection.message


@pytest.mark.cluster
def test_a_job_as_an_api_server_returns_it_is_taken_over(shared_cluster: Cluster) -> None:
    """A Job still counts as planned with the defaults that a real API server adds."""
    settings = Settings.from_env({"KUBECONFIG": str(shared_cluster.kubeconfig)})
    manifest = {
        "apiVersion": "sd-operator.dev/v1alpha1",
        "kind": "StableDiffusionModel",
        "metadata": {"name": "owner"},
        "spec": {"url": "some/repo"},
    }
    shared_cluster.apply(manifest)
    owner = Model.from_body(shared_cluster.get("sdm", "owner"))

    async def create_twice(plan: JobPlan) -> list[JobView | Rejection]:
        async with Api(settings.kubeconfig) as api:
            executor = Executor(api, settings, ObjectCache(), SYSTEM_CLOCK)
            return [await executor.create_job(plan) for _ in range(2)]

    for plan in (
        plan_load(owner, settings, claim(), 0),
        plan_remove(owner, settings, "models", 0),
    ):
        first, second = asyncio.run(create_twice(plan))
        assert isinstance(first, JobView)
        assert isinstance(second, JobView)
        assert second.uid == first.uid


@pytest.mark.cluster
def test_the_status_of_a_namesake_is_never_written(shared_cluster: Cluster) -> None:
    """A model that was deleted and created again between read and write keeps its own status."""
    manifest = {
        "apiVersion": "sd-operator.dev/v1alpha1",
        "kind": "StableDiffusionModel",
        "metadata": {"name": "namesake"},
        "spec": {"url": "some/repo"},
    }
    shared_cluster.apply(manifest)
    former = Model.from_body(shared_cluster.get("sdm", "namesake"))
    shared_cluster.kubectl("delete", "sdm", "namesake")
    shared_cluster.apply(manifest)

    async def write() -> None:
        settings = Settings.from_env({"KUBECONFIG": str(shared_cluster.kubeconfig)})
        async with Api(settings.kubeconfig) as api:
            executor = Executor(api, settings, ObjectCache(), SYSTEM_CLOCK)
            await executor.write_status(former, Status(phase=Phase.READY))

    with pytest.raises(ConflictError):
        asyncio.run(write())
    assert "status" not in shared_cluster.get("sdm", "namesake")
