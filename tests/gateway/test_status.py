"""Tests of the progress that verify_model and the endpoint status report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sd_operator.gateway import vendor
from sd_operator.gateway.routes import PREFIX
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayloads import a_name, load, put_status
from tests.support.gateway.gatewayrun import ARTIFACT, Gateway, write_keys
from tests.support.kube.cluster import Cluster

PROGRESS = {"stage": "Downloading", "percent": 40, "etaSeconds": 75, "text": "40% of 5 GB"}


@pytest.mark.parametrize(
    ("status", "phase", "percent", "eta"),
    [
        pytest.param({}, "Pending", None, None, id="not begun"),
        pytest.param({"phase": "Queued"}, "Queued", None, None, id="queued"),
        pytest.param(
            {"phase": "Downloading", "progress": PROGRESS}, "Downloading", 40, 75, id="loading"
        ),
        pytest.param(
            {"phase": "Converting", "progress": {"stage": "Converting", "percent": 0, "text": ""}},
            "Converting",
            0,
            None,
            id="no time known",
        ),
        pytest.param(
            {"phase": "Failed", "progress": PROGRESS}, "Failed", None, None, id="progress is old"
        ),
    ],
)
def test_progress_has_fields_of_its_own(
    status: dict[str, Any], phase: str, percent: int | None, eta: int | None
) -> None:
    """The response always has phase, percent and eta; a value that is not known is null."""
    fields = vendor.progress({"metadata": {}, "status": status})
    assert fields == {"phase": phase, "percent": percent, "eta": eta}


def get(gateway: Gateway, model_id: str, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """Get the status of a model with a key, by default the gateway's."""
    headers = (
        {"Authorization": f"Bearer {gateway.key if key is None else key}"} if key != "" else {}
    )
    status, _, body = gateway.request("GET", f"{PREFIX}/status/{model_id}", None, headers)
    return status, json.loads(body)


@pytest.mark.cluster
def test_status_gives_the_answer_of_verify_model(gateway: Gateway, shared_cluster: Cluster) -> None:
    """While a model loads, the response also has its progress; later, only the vendor's fields."""
    model_id = a_name()
    unknown = {"status": "error", "message": "Model does not exist on server"}
    assert get(gateway, model_id) == get(gateway, f"{model_id}/") == (404, unknown)
    load(gateway, model_id)
    put_status(
        shared_cluster,
        model_id,
        phase="Downloading",
        progress=PROGRESS,
        conditions={"Ready": "False"},
    )
    loading = {
        "status": "error",
        "message": "Model is not on server: Downloading 40 %: the load has not started",
        "phase": "Downloading",
        "percent": 40,
        "eta": 75,
    }
    assert gateway.call("verify_model", model_id=model_id) == (404, loading)
    assert get(gateway, model_id) == (404, loading)
    put_status(shared_cluster, model_id, phase="Ready", artifact=ARTIFACT, progress=None)
    exists = {"status": "success", "message": "Model exists on server"}
    assert gateway.call("verify_model", model_id=model_id) == (200, exists)
    assert get(gateway, model_id) == (200, exists)


@pytest.mark.cluster
def test_status_refuses_what_verify_model_refuses(gateway: Gateway) -> None:
    """The header must have a valid key, and the path a valid model id."""
    for key in ("", "wrong"):
        assert get(gateway, "x", key) == (401, {"status": "error", "message": "Invalid API key"})
    status, response = get(gateway, "-x")
    assert status == 400
    assert response["message"].startswith("model_id must be 1 to 63 letters")


@pytest.mark.cluster
def test_status_counts_as_a_call(shared_cluster: Cluster, tmp_path: Path) -> None:
    """Calls of `status` count towards the limits of calls per key and of failures per address."""
    (key,) = write_keys(tmp_path / "keys", shared_cluster.namespace)
    limits = {"calls_per_minute": 1, "failures_per_minute": 1}
    settings = GatewaySettings(tmp_path / "keys", shared_cluster.kubeconfig, **limits)
    with Gateway(settings, key) as gateway:
        assert [get(gateway, "x")[0] for _ in range(2)] == [404, 429]
        assert [get(gateway, "x", "wrong")[0] for _ in range(2)] == [401, 429]
