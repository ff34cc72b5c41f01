"""Tests that the controllers' caches survive while the API server does not serve a resource."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from devkit.fakefiles import json_answer
from devkit.loopback import Answer, Loopback, Request
from sd_operator.standalone import client
from sd_operator.standalone.client import Cache, Client
from sd_operator.standalone.errors import Json
from tests.support.kube.kubeconfig import write_kubeconfig

MODELS = "/apis/sd-operator.dev/v1alpha1/stablediffusionmodels"
NOT_FOUND = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(404, b"404 page not found\n"), id="in plain text"),
        pytest.param(json_answer(404, NOT_FOUND), id="as a Status", marks=pytest.mark.slow),
        pytest.param(Answer(502, b"<html>"), id="a proxy's page", marks=pytest.mark.slow),
    ],
)
def test_a_cache_waits_for_a_crd_that_was_deleted(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache does not fail, but lists again until the API server serves the resource."""
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.01)
    item = {"metadata": {"uid": "u"}}
    listing = {"kind": "ThingList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}}
    answers = [answer]

    def respond(request: Request) -> Answer:
        if "watch" in request.query:
            return Answer(200, b"")
        return answers.pop() if answers else json_answer(200, listing | {"items": [item]})

    async def fill(kubeconfig: str) -> dict[str, Json]:
        async with await Client.connect(kubeconfig) as connection, asyncio.timeout(5):
            cache = Cache(connection, MODELS, lambda _: None)
            running = asyncio.create_task(cache.run())
            waiting = asyncio.create_task(cache.synced.wait())
            await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), running.exception()
            running.cancel()
            return cache.objects

    with Loopback(respond) as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        assert set(asyncio.run(fill(str(tmp_path / "kubeconfig")))) == {"u"}
