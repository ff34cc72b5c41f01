"""Tests of the gateway with many models in one namespace."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sd_operator.clients import kube
from sd_operator.clients.kube import MODELS, Api
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import ARTIFACT, Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Cluster, model_manifest


async def fill(cluster: Cluster, count: int) -> None:
    """Create this many Ready models."""
    moment = ARTIFACT["lastUpdateTime"]
    ready = {"type": "Ready", "status": "True", "reason": "Loaded", "lastTransitionTime": moment}
    patch = {"status": {"conditions": [{**ready, "message": ""}], "artifact": ARTIFACT}}
    slots = asyncio.Semaphore(32)
    async with Api(cluster.kubeconfig) as api:

        async def create(number: int) -> None:
            async with slots:
                name = f"m-{number:04}"
                await api.create(MODELS, cluster.namespace, model_manifest(name, url="a/b"))
                await api.patch(MODELS, cluster.namespace, name, patch, sub="status")

        await asyncio.gather(*(create(number) for number in range(count)))


@pytest.mark.cluster
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_all_pages_of_a_long_list_are_returned(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The API server lists in pages. The response has each model once, by id."""
    monkeypatch.setattr(kube, "PAGE_SIZE", count * 2 // 5)
    asyncio.run(fill(cluster, count))
    (key,) = write_keys(tmp_path / "keys", cluster.namespace)
    with Gateway(GatewaySettings(tmp_path / "keys", cluster.kubeconfig, CLAIM), key) as gateway:
        status, response = gateway.call("get_all_models")
        details = gateway.call("system_details")[1]
        verified = gateway.call("verify_model", model_id=f"m-{count - 1:04}")[0]
    assert status == 200
    models = response["models"]
    assert [model["model_id"] for model in models] == [f"m-{n:04}" for n in range(count)]
    assert {model["load_data"] for model in models} == {"01/25/2023 11:52:22"}
    assert details["model_count"] == count
    assert verified == 200
