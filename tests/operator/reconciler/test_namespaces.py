"""Listed namespaces whose rights come and go, and models that are deleted with their namespace."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from typing_extensions import override

from sd_api import names
from sd_operator.base.errors import ApiError, ForbiddenError, NotFoundError
from sd_operator.base.metrics import Metrics
from sd_operator.base.settings import Settings
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.clients.kube import CLAIMS, JOBS, MODELS, NAMESPACES, PODS, Listing, Resource
from sd_operator.reconciler.controller import Controller
from sd_operator.reconciler.namespaces import Namespaces
from tests.support.kube.scriptedapi import Json, Script
from tests.support.rules.observed import body, claim, loading, published

DELETED = "2026-01-02T03:04:00Z"
FORBIDDEN = "jobs.batch is forbidden: no Role"


class Cluster(Script):
    """A cluster with one model in the namespace art, and with another namespace, ads."""

    def __init__(self, model: Json) -> None:
        super().__init__(model)
        self.forbidden: set[str] = set()
        """The namespaces without the operator's Role."""
        self.namespaces: dict[str, bool] = {"art": False, "ads": False}
        """Whether each namespace is being deleted."""
        self.may_read_namespaces = True
        self.released = asyncio.Event()

    def _check(self, resource: Resource, namespace: str | None) -> None:
        self.asked.append(f"{resource.plural} in {namespace}")
        if namespace in self.forbidden and resource not in (MODELS, NAMESPACES):
            raise ForbiddenError(FORBIDDEN)

    @override
    async def check(self, resource: Resource, namespace: str | None = None) -> None:
        self._check(resource, namespace)

    @override
    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        self._check(resource, namespace or name)
        if resource is not NAMESPACES:
            if resource is MODELS and self.released.is_set():
                raise NotFoundError("the model is gone", 404)
            return await super().get(resource, namespace, name)
        if not self.may_read_namespaces:
            raise ForbiddenError("namespaces is forbidden")
        if name not in self.namespaces:
            raise NotFoundError("not found", 404)
        return {"metadata": {"deletionTimestamp": DELETED} if self.namespaces[name] else {}}

    @override
    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        self._check(resource, namespace)
        if resource is MODELS:
            return Listing([self.model] if namespace == "art" else [], "9")
        return await super().list(resource, namespace, labels, fields)

    @override
    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        self._check(resource, namespace)
        return await super().create(resource, namespace, body)

    @override
    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._check(resource, namespace)
        await super().delete(resource, namespace, name, uid)

    @override
    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Json, sub: str = ""
    ) -> Json:
        if sub:
            self._check(JOBS, namespace)  # the Role has the right to the status, too
        if "finalizers" in body.get("metadata", {}):
            assert names.FINALIZER not in body["metadata"]["finalizers"]
            self.released.set()
            self.change({"metadata": {"finalizers": None}})
            return self.model
        return await super().patch(resource, namespace, name, body, sub)

    def delete_namespace(self) -> None:
        """Delete art as the namespace controller does: the Role first, then the model."""
        self.namespaces["art"] = True
        self.forbidden.add("art")
        self.change({"metadata": {"deletionTimestamp": DELETED}})


def serve(
    api: Cluster,
    scenario: Callable[[Controller, Namespaces, Metrics], Coroutine[Any, Any, None]],
) -> None:
    """Run a controller that serves art and ads."""

    async def run() -> None:
        metrics = Metrics()
        controller = Controller(api, Settings(), metrics, SYSTEM_CLOCK)
        namespaces = Namespaces(api, ("art", "ads"), controller, metrics)
        try:
            async with asyncio.timeout(10):
                await scenario(controller, namespaces, metrics)
        finally:
            await controller.close()

    asyncio.run(run())


def _served(metrics: Metrics, namespace: str) -> float | None:
    return metrics.registry.get_sample_value("sdmodel_namespace_served", {"namespace": namespace})


def test_other_namespaces_are_served_if_one_is_forbidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The forbidden namespace is logged once, and served again when its rights are restored."""
    api = Cluster(body())
    api.forbidden.add("art")

    async def scenario(_: Controller, namespaces: Namespaces, metrics: Metrics) -> None:
        await namespaces.look()
        await namespaces.look()
        assert namespaces.served == {"ads"}
        assert (_served(metrics, "art"), _served(metrics, "ads")) == (0, 1)
        api.forbidden.clear()
        await namespaces.look()
        assert namespaces.served == {"ads", "art"}
        assert _served(metrics, "art") == 1

    with caplog.at_level(logging.INFO):
        serve(api, scenario)
    told = [record.message for record in caplog.records if "namespace art" in record.message]
    assert told == [
        "namespace art is not served: the operator has no rights there; upgrade the release to"
        f" restore them ({FORBIDDEN})",
        "namespace art is served again",
    ]


@pytest.mark.parametrize("error", [ApiError("etcd is slow", 500), KeyError("uid")], ids=repr)
def test_other_namespaces_are_served_if_one_cannot_be_checked(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error about one namespace is raised only after the other namespaces were checked."""
    api = Cluster(body())
    check = api.check

    async def fails_in_art(resource: Resource, namespace: str | None = None) -> None:
        if namespace == "art":
            raise error
        await check(resource, namespace)

    monkeypatch.setattr(api, "check", fails_in_art)

    async def scenario(_: Controller, namespaces: Namespaces, __: Metrics) -> None:
        with pytest.raises(type(error)):
            await namespaces.look()
        assert namespaces.served == {"ads"}

    serve(api, scenario)


def test_a_namespace_that_is_gone_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The log says that the namespace does not exist, not that a right is missing."""
    api = Cluster(body())
    api.forbidden.add("ads")
    del api.namespaces["ads"]

    async def scenario(_: Controller, namespaces: Namespaces, __: Metrics) -> None:
        await namespaces.look()
        assert namespaces.served == {"art"}

    serve(api, scenario)
    assert "namespace ads is not served: it does not exist; create it" in caplog.text


@pytest.mark.parametrize("status", [{}, loading(), published()], ids=["new", "loading", "loaded"])
def test_a_restarted_operator_releases_a_model_of_a_deleted_namespace(status: Json) -> None:
    """After its first forbidden request, the operator reads the namespace before anything else."""
    api = Cluster(body(status))
    api.change({"metadata": {"finalizers": [names.FINALIZER]}})
    api.delete_namespace()

    async def scenario(_: Controller, namespaces: Namespaces, __: Metrics) -> None:
        await namespaces.look()
        assert namespaces.served == {"ads"}
        api.asked.clear()
        await api.released.wait()

    serve(api, scenario)
    assert "namespaces in art" in api.asked
    assert len([asked for asked in api.asked if asked in ("jobs in art", "pods in art")]) <= 1


@pytest.mark.parametrize("status", [{}, loading(), published()], ids=["new", "loading", "loaded"])
def test_a_running_operator_releases_a_model_of_a_deleted_namespace(status: Json) -> None:
    """The PVC is in the cache, so the first forbidden request creates or deletes a Job."""
    api = Cluster(body(status))
    api.change({"metadata": {"finalizers": [names.FINALIZER]}})

    async def scenario(controller: Controller, namespaces: Namespaces, _: Metrics) -> None:
        await namespaces.look()
        controller.cache.put_claim(claim())
        api.delete_namespace()
        controller.see(api.model)
        await api.released.wait()

    serve(api, scenario)


@pytest.mark.parametrize("unreadable", [False, True], ids=["alive", "unreadable"])
def test_a_missing_right_alone_releases_nothing(unreadable: bool) -> None:
    """A deleted model keeps its finalizer, so its files can be removed once the rights are back."""
    api = Cluster(body(published()))
    api.change({"metadata": {"finalizers": [names.FINALIZER], "deletionTimestamp": DELETED}})
    api.forbidden.add("art")
    api.may_read_namespaces = not unreadable

    async def scenario(_: Controller, namespaces: Namespaces, __: Metrics) -> None:
        await namespaces.look()
        await asyncio.sleep(0.3)
        assert not api.released.is_set()

    serve(api, scenario)
    assert {f"{kind.plural} in art" for kind in (JOBS, NAMESPACES)} <= set(api.asked)
    assert f"{PODS.plural} in art" not in api.asked
    assert f"{CLAIMS.plural} in art" not in api.asked
