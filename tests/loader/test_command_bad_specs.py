"""What the loader says of wrong specs, settings and requests: which field, before it downloads."""

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
            id="vae of a part",
        ),
        pytest.param(
            {"model_type": "vae", "weights": "ema"},
            Reason.INVALID_SPEC,
            "spec.weights",
            id="averages of a part",
        ),
        pytest.param(
            {"model_type": "huggingface", "original_config": "https://x.example/y"},
            Reason.INVALID_SPEC,
            "spec.originalConfig",
            id="config of a repo",
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
            id="averages of a repo",
        ),
        pytest.param(
            {"model_type": "lora", "weights": "ema"},
            Reason.INVALID_SPEC,
            "spec.weights",
            id="averages of a LoRA",
        ),
    ],
)
def test_what_this_version_cannot_do_costs_no_download(
    containers: Containers, hub: FakeHub, fields: dict[str, Any], reason: Reason, message: str
) -> None:
    """The spec alone tells; neither source nor volume is touched."""
    url = "org/name" if fields.get("model_type") == "huggingface" else f"{hub.url}/model.ckpt"
    failed(containers.fetch(load_request(url, **fields)), reason, message)
    assert hub.requests == []
    assert list(containers.store.iterdir()) == []


def test_a_wrong_original_config_costs_no_download(containers: Containers, hub: FakeHub) -> None:
    """It is fetched and read before the model, of which nothing is asked."""
    link = hub.serve_file("/model.ckpt", OTHER)
    page = hub.serve_file("/config.yaml", b"<html><body>Sign in</body></html>")
    ended = containers.fetch(load_request(link, original_config=page))
    failed(ended, Reason.INVALID_SPEC, "spec.originalConfig: it has no model.params")
    assert [request.path for request in hub.requests] == ["/config.yaml"]
    assert list(containers.store.iterdir()) == []


@pytest.mark.parametrize("value", ["10G", "-1", "1e9", "9" * 100])
@pytest.mark.parametrize("name", ["SD_LOADER_MAX_BYTES", "SD_LOADER_RETAIN_PREVIOUS_SECONDS"])
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    """The administrator learns which variable it is."""
    with pytest.raises(LoaderError, match=f"{name} must be a whole number") as caught:
        Settings.from_env({name: value})
    assert caught.value.reason is Reason.INVALID_SPEC


def test_no_previous_version_is_kept_beyond_what_dates_can_say() -> None:
    """A hundred years is the most."""
    name = "SD_LOADER_RETAIN_PREVIOUS_SECONDS"
    assert Settings.from_env({name: "3153600000"}).retain_previous_seconds == 3153600000
    with pytest.raises(LoaderError, match=f"{name} must be a whole number of at most 3153600000"):
        Settings.from_env({name: "3153600001"})


def test_a_wrong_setting_is_answered(containers: Containers) -> None:
    """With a termination message, like every other failure."""
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
        ('{"modelId": "../../etc"}', "modelId: String should match"),
        ('{"surprise": "token=very-secret"}', "surprise: Extra inputs"),
    ],
    ids=["no JSON", "empty", "path in the model id", "unknown field"],
)
def test_a_request_that_does_not_parse_is_permanent(
    containers: Containers, command: str, request_text: str, message: str
) -> None:
    """The message names the field and quotes nothing."""
    ended = containers.run(command, "--request", request_text, "--store", containers.store)
    failed(ended, Reason.INVALID_SPEC, message)
    assert "very-secret" not in ended.stderr
