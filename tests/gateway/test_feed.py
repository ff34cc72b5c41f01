"""Changes of models as they happen, over a real API server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from sd_operator.base.errors import UnavailableError
from sd_operator.clients import kube
from sd_operator.clients.kube import MODELS, Api, Resource
from sd_operator.gateway import feed
from sd_operator.gateway.feed import Change
from sd_operator.gateway.models import Models
from tests.support.kube.cluster import Cluster, model_manifest

pytestmark = pytest.mark.cluster


class Watched(Api):
    """Counts the watches that are open."""

    opened = 0
    open_now = 0

    async def watch(
        self, resource: Resource, namespace: str, since: str
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """As it is."""
        self.opened += 1
        self.open_now += 1
        try:
            async for event in super().watch(resource, namespace, since):
                yield event
        finally:
            self.open_now -= 1


async def until(holds: Callable[[], object]) -> None:
    """Wait for something to be so."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come")


class Ear:
    """Listens, and remembers; name and whether it is gone."""

    def __init__(self, models: Models, namespace: str) -> None:
        self.heard: list[tuple[str, bool]] = []
        self._task = asyncio.create_task(self._listen(models, namespace))

    async def _listen(self, models: Models, namespace: str) -> None:
        async for change in models.watch(namespace):
            self.note(change)

    def note(self, change: Change) -> None:
        """Remember."""
        self.heard.append((change.body["metadata"]["name"], change.gone))

    async def hears(self, *what: tuple[str, bool]) -> None:
        """Wait until all of this was heard."""
        await until(lambda: set(what) <= set(self.heard))

    async def leave(self) -> None:
        """Stop listening."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def follow(cluster: Cluster, act: Callable[[Watched, Models, str], Awaitable[None]]) -> None:
    """Run a test's part with a connection of its own."""

    async def run() -> None:
        async with Watched(cluster.kubeconfig) as api:
            await act(api, Models(api), cluster.namespace)
        # A watch that is left is closed by TLS's farewell, which aiohttp does not wait for.
        await asyncio.sleep(0.25)

    asyncio.run(run())


def a_name() -> str:
    """A name that no other test has."""
    return f"m-{secrets.token_hex(4)}"


async def create(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """Create a model."""
    return await api.create(MODELS, namespace, model_manifest(name, url="a/b"))


def test_many_listen_and_the_api_server_sees_one_watch(shared_cluster: Cluster) -> None:
    """Who comes later begins with what is there; when the last one leaves, the watch ends."""
    first, second = a_name(), a_name()

    async def act(api: Watched, models: Models, namespace: str) -> None:
        body = await create(api, namespace, first)
        ears = [Ear(models, namespace) for _ in range(3)]
        for ear in ears:
            await ear.hears((first, False))
        await create(api, namespace, second)
        late = Ear(models, namespace)
        for ear in (*ears, late):
            await ear.hears((first, False), (second, False))
        await models.delete(namespace, body)
        for ear in (*ears, late):
            await ear.hears((first, True))
        assert (api.opened, api.open_now) == (1, 1)
        for ear in (*ears, late):
            await ear.leave()
        assert api.open_now == 0
        again = Ear(models, namespace)
        await again.hears((second, False))
        assert (first, False) not in again.heard
        await again.leave()

    follow(shared_cluster, act)


def test_a_watch_that_ends_is_begun_again_and_nothing_is_told_twice(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers end them; what happened in between is told: also what is gone."""
    monkeypatch.setattr(kube, "WATCH_SECONDS", 1)
    monkeypatch.setattr(feed, "RETRY_SECONDS", 0.1)
    first, second = a_name(), a_name()

    async def act(api: Watched, models: Models, namespace: str) -> None:
        body = await create(api, namespace, first)
        ear = Ear(models, namespace)
        await ear.hears((first, False))
        await until(lambda: api.opened >= 3)
        assert ear.heard.count((first, False)) == 1
        await create(api, namespace, second)
        await models.delete(namespace, body)
        await ear.hears((second, False), (first, True))
        await ear.leave()

    follow(shared_cluster, act)


def test_without_the_api_server_listeners_wait(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look that fails is followed by another."""
    monkeypatch.setattr(feed, "RETRY_SECONDS", 0.05)
    name = a_name()
    failures = 3

    async def act(api: Watched, models: Models, namespace: str) -> None:
        nonlocal failures
        await create(api, namespace, name)
        listed = api.list

        async def failing(*arguments: Any) -> kube.Listing:
            nonlocal failures
            failures -= 1
            if failures > 0:
                raise UnavailableError("away")
            return await listed(*arguments)

        monkeypatch.setattr(api, "list", failing)
        ear = Ear(models, namespace)
        await ear.hears((name, False))
        await ear.leave()

    follow(shared_cluster, act)
    assert failures == 0
