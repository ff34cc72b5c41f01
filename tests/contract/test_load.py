"""The requests that the operator writes and the loader reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sd_api.check import VERSIONS_MAX, CheckedVersion, CheckRequest
from sd_api.choices import ModelType, Weights, contradiction
from sd_api.load import LoadRequest, Owner, RemoveRequest, Request
from sd_api.spec import LoadFields, Spec

LINK = "https://models.example.com/a.safetensors"
OWNER = Owner(uid="1", namespace="art", name="sketch")
HASH = "0123456789abcdef"
VERSION = CheckedVersion(uid="1", load_hash=HASH, model_id="sketch")
EVERY = {
    "url": LINK,
    "modelType": "lora",
    "fromSafetensors": True,
    "revision": "fp16",
    "upcastAttention": True,
    "gitRevision": "v2.1",
    "sha256": "0" * 64,
    "weights": "ema",
    "baseModel": "sdxl",
    "predictionType": "v_prediction",
    "lora": {"format": "peft", "expandLycoris": True},
    "originalConfig": "https://models.example.com/a.yaml",
    "vae": {"url": "org/vae"},
    "components": {"from": "org/flux", "transformer_2": {"url": "org/second"}},
    "verify": {"weights": True, "render": False, "prompt": "a fox", "steps": 20},
}
"""A value for each load-affecting field."""


def request(**spec: Any) -> LoadRequest:
    """Return the request for a spec."""
    return LoadRequest.from_spec(Spec.model_validate(spec), OWNER, HASH)


def test_a_request_carries_each_load_affecting_field_of_the_spec() -> None:
    """A field that is added to the spec reaches the loader."""
    assert {str(field.alias) for field in LoadFields.model_fields.values()} == EVERY.keys()
    assert EVERY.items() <= json.loads(request(**EVERY).to_argument()).items()


def test_a_request_carries_only_fields_that_are_set() -> None:
    """An older loader accepts the request if it knows all of these fields."""
    assert json.loads(request(url=LINK).to_argument()) == {
        "url": LINK,
        "owner": {"uid": "1", "namespace": "art", "name": "sketch"},
        "modelId": "sketch",
        "loadHash": HASH,
    }


def test_a_request_has_the_effective_values() -> None:
    """Defaults that depend on another field or on the resource's name are filled in."""
    canny = Owner(uid="1", namespace="art", name="canny")
    asked = LoadRequest.from_spec(Spec(model_type=ModelType.CONTROLNET), canny, HASH)
    assert (asked.url, asked.model_id) == ("lllyasviel/control_v11p_sd15_canny", "canny")
    assert request(url=LINK, modelId="My_Model").model_id == "My_Model"
    assert request(url=LINK).weights is Weights.STANDARD


def test_a_spec_without_a_source_has_no_request() -> None:
    """Making the request of a spec without a url is an error."""
    with pytest.raises(ValidationError, match="url"):
        request(modelType="controlnet")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(request(**EVERY), id="load"),
        pytest.param(request(url=LINK), id="load of a url"),
        pytest.param(RemoveRequest(owner=OWNER, model_id="m", retain=True), id="remove"),
        pytest.param(CheckRequest(versions=(VERSION,) * VERSIONS_MAX), id="check"),
    ],
)
def test_a_request_is_read_as_it_was_written(asked: Request) -> None:
    """The loader parses the operator's argument into an equal request."""
    assert type(asked).from_argument(asked.to_argument()) == asked


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("later", 1, id="in the request"),
        pytest.param("owner.later", 1, id="in the owner"),
        pytest.param("vae.later", 1, id="in the vae"),
        pytest.param("components.later", {"url": "org/x"}, id="in the components"),
        pytest.param("verify.later", 1, id="in verify"),
        pytest.param("webhook", "https://hooks.example.com", id="not load-affecting"),
        pytest.param("verify.steps", "20", id="a number as a string"),
        pytest.param("upcastAttention", "true", id="a truth as a string"),
        pytest.param("credentials", 1, id="a truth as a number"),
        pytest.param("loadHash", "x", id="no hash"),
    ],
)
def test_a_request_is_strict_and_closed_at_every_level(path: str, value: object) -> None:
    """A loader rejects unknown fields rather than load something else."""
    raw = json.loads(request(**EVERY).to_argument())
    *parents, name = path.split(".")
    node = raw
    for parent in parents:
        node = node[parent]
    node[name] = value
    with pytest.raises(ValidationError, match=name):
        LoadRequest.from_argument(json.dumps(raw))


def test_the_longest_request_of_a_check_fits_into_an_argument() -> None:
    """The longest check request is below 128 KiB, Linux's limit for one argument."""
    longest = CheckedVersion(uid="u" * 64, load_hash=HASH, model_id="m" * 63)
    request = CheckRequest(versions=(longest,) * VERSIONS_MAX)
    assert len(request.to_argument()) < 128 << 10


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param([], id="none"),
        pytest.param([{"uid": "1", "loadHash": HASH}], id="no model id"),
        pytest.param([{"uid": "../x", "loadHash": HASH, "modelId": "m"}], id="a path as uid"),
        pytest.param([{"uid": "1", "loadHash": "..", "modelId": "m"}], id="a path as hash"),
        pytest.param([{"uid": "1", "loadHash": HASH, "modelId": "a/b"}], id="a path as model id"),
        pytest.param([{"uid": "1", "loadHash": HASH, "modelId": "m", "x": 1}], id="another field"),
        pytest.param(
            [{"uid": "1", "loadHash": HASH, "modelId": "m"}] * (VERSIONS_MAX + 1), id="too many"
        ),
    ],
)
def test_a_request_of_a_check_names_published_versions(versions: list[object]) -> None:
    """The loader makes paths from these fields, so it refuses any other value."""
    with pytest.raises(ValidationError, match="versions"):
        CheckRequest.from_argument(json.dumps({"versions": versions}))


@pytest.mark.parametrize("url", ["org/name", LINK])
def test_a_request_names_a_model_type_only_if_the_spec_does(url: str) -> None:
    """If the request has no model type, the loader finds the type in the source."""
    assert request(url=url).model_type is None
    assert request(url=url, modelType="vae").model_type is ModelType.VAE


@pytest.mark.parametrize(
    ("given", "found", "is_refused"),
    [
        (None, "lora", False),
        ("lora", "lora", False),
        ("custom_ckpt", "lora", True),
        ("lora", "custom_ckpt", True),
        ("huggingface", "custom_ckpt", False),
        ("custom_ckpt", None, False),
        ("custom_ckpt", "later", True),
    ],
)
def test_a_given_type_must_agree_with_the_found_one(
    given: str | None, found: str | None, is_refused: bool
) -> None:
    """A given type that differs from the found type is refused.

    huggingface and custom_ckpt do not contradict each other: a repo may be one checkpoint.
    """
    words = contradiction(ModelType(given) if given else None, found)
    assert (words is not None) == is_refused
    assert words is None or f"the source is of type {found}" in words
