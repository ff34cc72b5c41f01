"""A wrong spec, setting or request fails before the download and names the field."""

from __future__ import annotations

from typing import Any

import pytest

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from tests.support.loader.loadercli import (
    OTHER,
    Containers,
    failed,
    load_request,
    remove_request,
)


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        pytest.param(
            {"model_type": "controlnet", "vae": {"url": "org/vae"}},
            Reason.INVALID_SPEC,
            "spec.vae is for whole models",
            id="vae of a controlnet",
        ),
        pytest.param(
            {"model_type": "vae", "weights": "ema"},
            Reason.INVALID_SPEC,
            "spec.weights",
            id="EMA weights of a vae",
        ),
        pytest.param(
            {"model_type": "huggingface", "original_config": "https://x.example/y"},
            Reason.INVALID_SPEC,
            "spec.originalConfig",
            id="original config of a repo",
        ),
        pytest.param(
            {"model_type": "lora", "vae": {"url": "org/vae"}},
            Reason.INVALID_SPEC,
            "spec.vae is for whole models",
            id="vae of a LoRA",
        ),
        pytest.param(
            {"model_type": "huggingface", "weights": "ema"},
            Reason.INVALID_SPEC,
            "spec.weights",
            id="EMA weights of a repo",
        ),
        pytest.param(
            {"model_type": "lora", "weights": "ema"},
            Reason.INVALID_SPEC,
            "spec.weights",
            id="EMA weights of a LoRA",
        ),
    ],
)
def test_impossible_spec_fails_before_the_download(
    containers: Containers, hub: FakeHub, fields: dict[str, Any], reason: Reason, message: str
) -> None:
    """The spec alone shows the problem, so the loader calls no source and writes nothing."""
    url = "org/name" if fields.get("model_type") == "huggingface" else f"{hub.url}/model.ckpt"
    failed(containers.fetch(load_request(url, **fields)), reason, message)
    assert hub.requests == []
    assert list(containers.store.iterdir()) == []


def test_invalid_original_config_fails_before_the_model_download(
    containers: Containers, hub: FakeHub
) -> None:
    """The loader fetches and parses the config first and does not request the model."""
    link = hub.serve_file("/model.ckpt", OTHER)
    page = hub.serve_file("/config.yaml", b"<html><body>Sign in</body></html>")
    ended = containers.fetch(load_request(link, original_config=page))
    failed(ended, Reason.INVALID_SPEC, "spec.originalConfig: it has no model.params")
    assert [request.path for request in hub.requests] == ["/config.yaml"]
    assert list(containers.store.iterdir()) == []


@pytest.mark.parametrize("value", ["10G", "-1", "1e9", "9" * 100])
@pytest.mark.parametrize("name", ["SD_LOADER_MAX_BYTES", "SD_LOADER_RETAIN_PREVIOUS_SECONDS"])
def test_invalid_setting_is_named(name: str, value: str) -> None:
    """The message names the environment variable."""
    with pytest.raises(LoaderError, match=f"{name} must be a whole number") as caught:
        Settings.from_env({name: value})
    assert caught.value.reason is Reason.INVALID_SPEC


def test_retention_is_limited_to_a_hundred_years() -> None:
    """A much longer time could overflow a date."""
    name = "SD_LOADER_RETAIN_PREVIOUS_SECONDS"
    assert Settings.from_env({name: "3153600000"}).retain_previous_seconds == 3153600000
    with pytest.raises(LoaderError, match=f"{name} must be a whole number of at most 3153600000"):
        Settings.from_env({name: "3153600001"})


def test_invalid_setting_is_reported_in_the_termination_message(containers: Containers) -> None:
    """The failure has a result like every other failure."""
    ended = containers.run(
        "remove", *containers.arguments(remove_request()), SD_LOADER_MAX_BYTES="10G"
    )
    failed(ended, Reason.INVALID_SPEC, "SD_LOADER_MAX_BYTES must be a whole number")


@pytest.mark.parametrize("command", ["fetch", "convert", "remove"])
@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("{", "not valid"),
        ("{}", "owner: Field required"),
        ('{"modelId": "../../etc"}', "modelId: must be 1 to 63 letters"),
        ('{"surprise": "token=very-secret"}', "surprise: Extra inputs"),
    ],
    ids=["no JSON", "empty", "path in the model id", "unknown field"],
)
def test_invalid_request_is_a_permanent_failure(
    containers: Containers, command: str, request_text: str, message: str
) -> None:
    """The message names the field, if the request can be parsed, and quotes no value."""
    ended = containers.run(command, "--request", request_text, "--store", containers.store)
    failed(ended, Reason.INVALID_SPEC, message)
    assert "very-secret" not in ended.stderr
