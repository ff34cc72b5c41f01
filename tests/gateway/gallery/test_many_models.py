"""Tests of how long the gallery takes to show and search the list of 1,000 models."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.responses import Response

from sd_api import names
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.gateway.context import Context
from sd_operator.gateway.gallery.reading import Reading
from sd_operator.gateway.keys import Key
from tests.support.gateway.gallerymodels import AT, loading, ready

LIMIT_SECONDS = 0.5
KEY = Key("painter", "art", b"")
TYPES = ("custom_ckpt", "lora", "vae", "controlnet", "embeddings")
BASES = ("sd-1", "sdxl", "flux", "sd-3")


def model(number: int) -> dict[str, Any]:
    """Return a model; every tenth one is being loaded."""
    name, uid = f"model-{number:04}", f"uid-{number}"
    kind = TYPES[number % len(TYPES)]
    fields = {"modelType": kind, "baseModel": BASES[number % len(BASES)]}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name,
            "namespace": "art",
            "uid": uid,
            "generation": 1,
            "resourceVersion": str(number),
            "creationTimestamp": AT,
        },
        "spec": {"url": f"https://example.com/{name}.safetensors", "modelType": kind},
        "status": loading(number % 100) if number % 10 == 0 else ready(uid, name, **fields),
    }


@pytest.fixture(scope="module")
def reading() -> Reading:
    """The pages of a gateway that has received 1,000 models from the API server."""
    bodies = [model(number) for number in range(1000)]

    async def all_models(_namespace: str) -> list[dict[str, Any]]:
        return bodies

    context = SimpleNamespace(
        clock=SYSTEM_CLOCK,
        models=SimpleNamespace(all=all_models),
        settings=SimpleNamespace(store=None),
    )
    return Reading(cast("Context", context))


def measured(reading: Reading, query: str) -> tuple[str, float]:
    """Return the page for a query, and the processor time that it took in seconds."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": query.encode(),
        "headers": [],
    }

    async def handle() -> tuple[Response, float]:
        start = time.process_time()
        response = await reading.list(Request(scope), KEY)
        return response, time.process_time() - start

    response, seconds = asyncio.run(handle())
    return bytes(response.body).decode(), seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "found"),
    [
        pytest.param("", "1000 models", id="first page"),
        pytest.param("q=model-07", "100 of 1000 models", id="search"),
        pytest.param("q=no-such-model", "0 of 1000 models", id="nothing found"),
        pytest.param("type=lora&sort=size&view=compact", "200 of 1000 models", id="filter"),
    ],
)
def test_a_thousand_models_are_listed_in_half_a_second(
    reading: Reading, query: str, found: str
) -> None:
    """The time is that of the gateway, from the models of the API server to the page."""
    measured(reading, query)  # Templates and validators are built on first use.
    text, seconds = measured(reading, query)
    assert found in text
    assert seconds < LIMIT_SECONDS, f"it took {seconds:.2f} s"
