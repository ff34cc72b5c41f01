"""Tests of the feed of model changes, on a real API server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sd_operator.base.errors import UnavailableError
from sd_operator.clients import kube
from sd_operator.clients.kube import MODELS, Api, Resource
from sd_operator.gateway import feed
from sd_operator.gateway.feed import Change
from sd_operator.gateway.models import Models
from sd_operator.gateway.settings import GatewaySettings
from tests.support.kube.cluster import Cluster, model_manifest

pytestmark = pytest.mark.cluster


class CountingApi(Api):
    """An API connection that counts its watches."""

    opened = 0
    """The number of watches that were opened."""
    open_now = 0
    """The number of open watches."""

    async def watch(
        self, resource: Resource, namespace: str, since: str
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Start a watch and count it."""
        self.opened += 1
        self.open_now += 1
        try:
            async for event in super().watch(resource, namespace, since):
                yield event
        finally:
            self.open_now -= 1


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true, for at most 20 seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the condition did not become true")


class Listener:
    """Listens to a namespace's models and records all changes."""

    def __init__(self, models: Models, namespace: str) -> None:
        self.changes: list[tuple[str, bool]] = []
        """Each change as the model's name and whether the model is gone."""
        self._task = asyncio.create_task(self._listen(models, namespace))

    async def _listen(self, models: Models, namespace: str) -> None:
        async for change in models.watch(namespace):
            self.record(change)

    def record(self, change: Change) -> None:
        """Record a change."""
        self.changes.append((change.body["metadata"]["name"], change.gone))

    async def receives(self, *changes: tuple[str, bool]) -> None:
        """Wait until all these changes were received."""
        await until(lambda: set(changes) <= set(self.changes))

    async def stop(self) -> None:
        """Stop listening."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def follow(cluster: Cluster, act: Callable[[CountingApi, Models, str], Awaitable[None]]) -> None:
    """Run `act` with its own connection to the API server."""

    async def run() -> None:
        async with CountingApi(cluster.kubeconfig) as api:
            await act(api, Models(api, GatewaySettings(Path())), cluster.namespace)
        # aiohttp does not wait for the TLS shutdown of an open watch: give it time to finish.
        await asyncio.sleep(0.25)

    asyncio.run(run())


def a_name() -> str:
    """Return a name that no other test uses."""
    return f"m-{secrets.token_hex(4)}"


async def create(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """Create a model and return it."""
    return await api.create(MODELS, namespace, model_manifest(name, url="a/b"))


def test_all_listeners_share_one_watch(shared_cluster: Cluster) -> None:
    """A late listener first gets the existing models. The watch ends with the last listener."""
    first, second = a_name(), a_name()

    async def act(api: CountingApi, models: Models, namespace: str) -> None:
        body = await create(api, namespace, first)
        listeners = [Listener(models, namespace) for _ in range(3)]
        for listener in listeners:
            await listener.receives((first, False))
        await create(api, namespace, second)
        late = Listener(models, namespace)
        for listener in (*listeners, late):
            await listener.receives((first, False), (second, False))
        await models.delete(namespace, body)
        for listener in (*listeners, late):
            await listener.receives((first, True))
        assert (api.opened, api.open_now) == (1, 1)
        for listener in (*listeners, late):
            await listener.stop()
        assert api.open_now == 0
        new = Listener(models, namespace)
        await new.receives((second, False))
        assert (first, False) not in new.changes
        await new.stop()

    follow(shared_cluster, act)


def test_watch_restarts_without_repeating_or_losing_changes(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server ends every watch. A deletion between two watches is reported too."""
    monkeypatch.setattr(kube, "WATCH_SECONDS", 1)
    monkeypatch.setattr(feed, "RETRY_SECONDS", 0.1)
    first, second = a_name(), a_name()

    async def act(api: CountingApi, models: Models, namespace: str) -> None:
        body = await create(api, namespace, first)
        listener = Listener(models, namespace)
        await listener.receives((first, False))
        await until(lambda: api.opened >= 3)
        assert listener.changes.count((first, False)) == 1
        await create(api, namespace, second)
        await models.delete(namespace, body)
        await listener.receives((second, False), (first, True))
        await listener.stop()

    follow(shared_cluster, act)


def test_listeners_wait_while_the_api_server_is_unavailable(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed lists the models again until the API server answers."""
    monkeypatch.setattr(feed, "RETRY_SECONDS", 0.05)
    name = a_name()
    failures = 3

    async def act(api: CountingApi, models: Models, namespace: str) -> None:
        nonlocal failures
        await create(api, namespace, name)
        listed = api.list

        async def failing(*arguments: Any) -> kube.Listing:
            nonlocal failures
            failures -= 1
            if failures > 0:
                raise UnavailableError("unavailable")
            return await listed(*arguments)

        monkeypatch.setattr(api, "list", failing)
        listener = Listener(models, namespace)
        await listener.receives((name, False))
        await listener.stop()

    follow(shared_cluster, act)
    assert failures == 0
