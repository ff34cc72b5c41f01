"""Tests of messages: they are in words, and name the fields that the caller knows."""

from __future__ import annotations

import pytest

from sd_operator.base.errors import InvalidError
from sd_operator.gateway import vendor
from sd_operator.gateway.errors import map_api_error
from sd_operator.gateway.vendor import LoadModel, LoadModelV2, LoadVae
from tests.support.gateway.gatewayloads import a_name
from tests.support.gateway.gatewayrun import Gateway


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Invalid value: \"a b\": spec.x in body should match '^[0-9a-f]{64}$'",
            "must be 64 digits",
        ),
        (
            "Invalid value: \"a\": spec.x in body should match '^unknown$'",
            "has characters that are",
        ),
        (
            'Invalid value: "A": a name (e.g. x, regex used for validation is y)',
            "must be lower-case",
        ),
        (
            'Invalid value: "string": spec.x in body must be of type integer: "string"',
            "must be a whole number",
        ),
        (
            'Invalid value: "string": spec.x in body must be of type boolean: "string"',
            "must be true or false",
        ),
        (
            'Invalid value: "string": spec.x in body must be of type object: "string"',
            "must be of type object",
        ),
        ("Too long: may not be more than 2048 bytes", "must have at most 2048 characters"),
        (
            'Invalid value: "aaa": must be no more than 253 bytes',
            "must have at most 253 characters",
        ),
        ("Required value: name or generateName is required", "is required"),
        (
            "Invalid value: 9: spec.x in body should be less than or equal to 5",
            "must be less than or equal to 5",
        ),
    ],
)
def test_api_servers_validation_is_in_words(text: str, words: str) -> None:
    """A message never has a regular expression, the rejected value or the word body."""
    invalid = InvalidError("secret", 422)
    unchecked = "some validation rules were not checked because the object was invalid; correct …"
    invalid.causes = (("spec.x", text), ("<nil>", f"Invalid value: null: {unchecked}"))
    assert map_api_error(invalid).message.startswith(f"spec.x {words}")


def test_message_without_a_field_stays_as_it_is() -> None:
    """A message without a field is kept, such as one of an admission webhook of the cluster."""
    invalid = InvalidError("secret", 422)
    invalid.causes = (("", "a webhook denied it"),)
    assert map_api_error(invalid).message == "a webhook denied it"


@pytest.mark.parametrize("kind", [LoadModel, LoadModelV2, LoadVae])
def test_messages_name_every_field_that_a_request_sets(kind: type[vendor.Call]) -> None:
    """`Call.NAMES` has the request's name for each field of the resource that a request sets."""
    assert {f"spec.{path}" for path in SPEC_FIELDS[kind]} | {"spec.modelId"} == set(kind.NAMES)
    assert set(kind.NAMES.values()) <= set(kind.model_fields)
    message = vendor.in_callers_words(kind, "spec.url is required")
    assert message == f"{kind.NAMES['spec.url']} is required"
    assert vendor.in_callers_words(kind, "check spec.gitRevision") == "check spec.gitRevision"


SPEC_FIELDS = {
    LoadModel: ("url", "modelType", "fromSafetensors", "revision", "upcastAttention", "webhook"),
    LoadModelV2: ("url", "modelType", "baseModel", "fromSafetensors", "revision", "webhook"),
    LoadVae: ("url", "fromSafetensors", "webhook"),
}
"""The fields of the spec that come from a field of the request."""


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("endpoint", "fields", "message"),
    [
        pytest.param(
            "load_vae",
            {"vae_url": "word", "vae_type": "pt", "vae_id": "v"},
            "vae_url must be a Hugging Face repo id",
            id="vae",
        ),
        pytest.param(
            "load_model_v2",
            {"url": "a/b", "model_category": "lora", "model_format": "pt", "webhook": "ftp://a"},
            "webhook must be an http(s) URL",
            id="v2",
        ),
    ],
)
def test_message_names_the_fields_of_its_endpoint(
    gateway: Gateway, endpoint: str, fields: dict[str, str], message: str
) -> None:
    """An error of the API server about the resource is reported with the request's field names."""
    status, response = gateway.call(endpoint, **{"model_id": a_name(), **fields})
    assert (status, response["status"]) == (400, "error")
    assert response["message"].startswith(message)
