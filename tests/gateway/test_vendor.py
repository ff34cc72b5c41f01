"""Tests of the translation between the vendor's fields and resources."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sd_api.choices import ModelType
from sd_api.names import MODEL_ID_PATTERN
from sd_api.reasons import Reason
from sd_operator.base.errors import ForbiddenError, InvalidError, UnavailableError
from sd_operator.gateway import bodies, vendor
from sd_operator.gateway.errors import RefusedError, map_api_error
from sd_operator.gateway.models import spec_patch
from sd_operator.gateway.naming import ID_AS_NAME_MAX_LENGTH, resource_name
from sd_operator.gateway.vendor import LoadModel, LoadModelV2, LoadVae

QUICK = settings(max_examples=50, deadline=None)
LINK = "https://civitai.com/api/download/models/94640"
REQUEST = {"url": LINK, "model_id": "a", "model_type": "custom_ckpt"}
SPEC_OF_REQUEST = {
    "url": LINK,
    "modelType": "custom_ckpt",
    "fromSafetensors": None,
    "revision": "fp32",
    "upcastAttention": None,
    "webhook": None,
}


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        pytest.param({}, {}, id="fp32 is the default precision"),
        pytest.param({"revision": "fp16"}, {"revision": "fp16"}, id="revision"),
        pytest.param({"from_safetensors": "yes"}, {"fromSafetensors": True}, id="safetensors"),
        pytest.param({"from_safetensors": "no"}, {}, id="not safetensors"),
        pytest.param({"upcast_attention": "YES"}, {"upcastAttention": True}, id="upcast"),
        pytest.param({"upcast_attention": "no"}, {}, id="no upcast"),
        pytest.param({"webhook": "https://a.b/c"}, {"webhook": "https://a.b/c"}, id="webhook"),
        pytest.param(
            {"webhook": "", "revision": None, "from_safetensors": ""}, {}, id="blank is absent"
        ),
        pytest.param({"track_id": 7, "key": "k"}, {}, id="unknown fields are ignored"),
    ],
)
def test_spec_of_a_load_model_request(fields: dict[str, Any], spec: dict[str, Any]) -> None:
    """Each row has the fields of a request and the spec, in which None stands for no field."""
    assert LoadModel.model_validate(REQUEST | fields).spec() == SPEC_OF_REQUEST | spec


@pytest.mark.parametrize(
    ("category", "file_format", "model_type", "safetensors", "base_model"),
    [
        ("stable_diffusion", "ckpt", "custom_ckpt", None, None),
        ("stable_diffusion", "pt", "custom_ckpt", None, None),
        ("stable_diffusion", "safetensors", "custom_ckpt", True, None),
        ("stable_diffusion", "diffusers", "huggingface", None, None),
        ("stable_diffusion_xl", "safetensors", "custom_ckpt", True, "sdxl"),
        ("stable_diffusion_xl", "diffusers", "huggingface", None, "sdxl"),
        ("lora", "safetensors", "lora", True, None),
        ("lora", "pt", "lora", None, None),
        ("lora", "diffusers", "lora", None, None),
        ("controlnet", "diffusers", "controlnet", None, None),
        ("controlnet", "safetensors", "controlnet", True, None),
    ],
)
def test_spec_of_a_load_model_v2_request(
    category: str,
    file_format: str,
    model_type: str,
    safetensors: bool | None,
    base_model: str | None,
) -> None:
    """Category and format together give model type, base model and fromSafetensors.

    The category of a LoRA or ControlNet leaves the base model of the resource as it is.
    """
    fields = {"url": LINK, "model_id": "a", "model_category": category, "model_format": file_format}
    assert LoadModelV2.model_validate(fields).spec() == {
        "url": LINK,
        "modelType": model_type,
        **({"baseModel": base_model} if category.startswith("stable") else {}),
        "fromSafetensors": safetensors,
        "revision": "fp32",
        "webhook": None,
    }


@pytest.mark.parametrize(
    ("file_format", "safetensors"), [("diffusers", None), ("safetensors", True), ("pt", None)]
)
def test_spec_of_a_load_vae_request(file_format: str, safetensors: bool | None) -> None:
    """The spec has no revision, so a revision that the resource already has stays."""
    fields = {"vae_id": "v", "vae_url": "a/b", "vae_type": file_format}
    assert LoadVae.model_validate(fields).spec() == {
        "url": "a/b",
        "modelType": "vae",
        "fromSafetensors": safetensors,
        "webhook": None,
    }


def test_load_model_accepts_every_model_type() -> None:
    """load_model accepts the vendor's six model types and vae."""
    accepted = get_args(LoadModel.model_fields["model_type"].annotation)
    assert set(accepted) == {model_type.value for model_type in ModelType}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        pytest.param(
            {"url": None, "model_id": "", "model_type": None},
            "url is required; model_id is required; model_type is required",
            id="all missing",
        ),
        pytest.param({"model_id": "a b"}, "model_id must be 1 to 63 letters", id="id with a space"),
        pytest.param({"model_id": "a" * 64}, "model_id must be 1 to 63 letters", id="long id"),
        pytest.param({"model_id": "../a"}, "model_id must be 1 to 63 letters", id="id with a path"),
        pytest.param({"model_type": "sdxl"}, "model_type: Input should be", id="type"),
        pytest.param({"revision": "fp8"}, "revision: Input should be", id="revision"),
        pytest.param({"from_safetensors": "maybe"}, "from_safetensors: Input", id="maybe"),
        pytest.param({"url": "h" * 2049}, "url: String should have at most 2048", id="long url"),
        pytest.param({"url": ["a"]}, "url: Input should be a valid string", id="list for a url"),
    ],
)
def test_complaint_names_the_invalid_field(fields: dict[str, Any], complaint: str) -> None:
    """The message has the request's field name and never the values that were sent."""
    with pytest.raises(ValidationError) as error:
        LoadModel.model_validate(REQUEST | fields)
    text = vendor.complaint(error.value)
    assert text.startswith(complaint)
    assert LINK not in text


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("majicmix-realistic", "majicmix-realistic"),
        ("a" * 52, "a" * 52),
        ("a" * 53, "a" * 40),
        ("My_Model.v1", "my-model-v1"),
        ("my.model", "my-model"),
        ("A", "a"),
        ("a-.-b", "a-b"),
    ],
)
def test_resource_name_is_the_id_or_a_slug_of_it(model_id: str, name: str) -> None:
    """If the id is not a valid name, the name is a slug of the id with a digest."""
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    assert resource_name(model_id) == (name if name == model_id else f"{name}-{digest}")


@QUICK
@given(st.from_regex(MODEL_ID_PATTERN.replace("$", r"\Z")))
def test_resource_name_of_any_id_is_a_short_dns_label(model_id: str) -> None:
    """Every valid id has a name. If a name is used as an id, the name stays the same."""
    name = resource_name(model_id)
    assert len(name) <= ID_AS_NAME_MAX_LENGTH
    assert resource_name(name) == name


@pytest.mark.parametrize(
    ("raw", "content_type", "fields"),
    [
        pytest.param(b'{"key":"k"}', "application/json", {"key": "k"}, id="JSON"),
        pytest.param(b'{"key":"k"}', "text/plain;charset=UTF-8", {"key": "k"}, id="text"),
        pytest.param(b'{"key":"k"}', "", {"key": "k"}, id="no type"),
        pytest.param(b'\xef\xbb\xbf{"key":"k"}', "", {"key": "k"}, id="byte order mark"),
        pytest.param(b'{"key":"k=1&a"}', bodies.FORM, {"key": "k=1&a"}, id="JSON as a form"),
        pytest.param(
            b"key=k&url=a%2Fb&x=", bodies.FORM, {"key": "k", "url": "a/b", "x": ""}, id="form"
        ),
        pytest.param(b"", "application/json", {}, id="empty"),
        pytest.param(b" \n", "", {}, id="whitespace"),
    ],
)
def test_body_is_parsed_as_json_or_as_a_form(
    raw: bytes, content_type: str, fields: dict[str, Any]
) -> None:
    """The text decides if the content type is wrong, as it is in the vendor's examples."""
    assert bodies.parse(raw, content_type) == fields


@pytest.mark.parametrize(
    ("raw", "content_type", "words"),
    [
        pytest.param(b"key=k", "text/plain", "is not valid JSON: Expecting", id="form as text"),
        pytest.param(b'{"key":', "application/json", "is not valid JSON: Expecting", id="cut"),
        pytest.param(b'{"key":', bodies.FORM, "is not valid JSON", id="cut, sent by curl"),
        pytest.param(b"{'key': 'k'}", bodies.FORM, "at line 1, column 2", id="wrong quotes"),
        pytest.param(b"key is k", bodies.FORM, "is not valid JSON", id="neither, sent by curl"),
        pytest.param(b"--x", "multipart/form-data; boundary=x", "send a JSON object", id="parts"),
        pytest.param(b"[]", "application/json", "is not a JSON object", id="list"),
        pytest.param(b"[1]", bodies.FORM, "is not a JSON object", id="list, sent by curl"),
        pytest.param(b'"key"', "application/json", "is not a JSON object", id="string"),
        pytest.param(b"\xff\xfe{}", "application/json", "is not text in UTF-8", id="not UTF-8"),
        pytest.param(b'{"key":"\\ud800"}', "", "half a surrogate pair", id="half a pair"),
        pytest.param(b"[" * 60000, "application/json", "too deep", id="deeply nested"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "", "a number is too long", id="huge number"),
        pytest.param(b"a=1&" * 101, bodies.FORM, "more than 100 fields", id="many fields"),
    ],
)
def test_unreadable_body_is_rejected_with_the_cause(
    raw: bytes, content_type: str, words: str
) -> None:
    """The status is 400, and the message says what is wrong with the body."""
    with pytest.raises(bodies.BodyError) as error:
        bodies.parse(raw, content_type)
    assert error.value.status == 400
    assert error.value.message.startswith("The body ")
    assert words in error.value.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key": "k", "url": LINK}, None),
        ({"webhok": "x", "url": LINK}, "unknown fields are ignored: webhok"),
        ({"b": 1, "a\n": 1}, "unknown fields are ignored: a?, b"),
        ({"x" * 50: 1}, f"unknown fields are ignored: {'x' * 40}"),
        (
            {f"f{i:02}": 1 for i in range(12)},
            "unknown fields are ignored: "
            + ", ".join(f"f{i:02}" for i in range(10))
            + " and 2 more",
        ),
    ],
)
def test_warnings_name_the_unknown_fields(fields: dict[str, Any], words: str | None) -> None:
    """Without unknown fields there is no warning. Long names and long lists of names are cut."""
    expected = {} if words is None else {"warnings": [words]}
    assert vendor.warnings(LoadModel, fields) == expected


@QUICK
@given(st.binary(max_size=200), st.sampled_from(["", "application/json", bodies.FORM]))
def test_any_body_is_parsed_or_rejected(raw: bytes, content_type: str) -> None:
    """Parsing never raises anything except a RefusedError with status 400."""
    status = 200
    try:
        bodies.parse(raw, content_type)
    except RefusedError as error:
        status = error.status
    assert status in (200, 400)


SPEC = {
    "url": LINK,
    "modelType": "custom_ckpt",
    "revision": "fp16",
    "sha256": "0" * 64,
    "baseModel": "sd-1",
    "credentialsSecretRef": {"name": "civitai"},
    "storage": {"claimName": "fast"},
    "priority": 5,
}
WITHOUT_SOURCE_FIELDS = {"sha256": None, "baseModel": None}


@pytest.mark.parametrize(
    ("wanted", "patch"),
    [
        pytest.param({"url": LINK, "revision": "fp16", "webhook": None}, {}, id="no difference"),
        pytest.param({"revision": "fp32"}, {"revision": "fp32"}, id="one field"),
        pytest.param({"revision": None}, {"revision": None}, id="removed field"),
        pytest.param(
            {"url": "https://civitai.com/2"},
            {"url": "https://civitai.com/2", **WITHOUT_SOURCE_FIELDS},
            id="another file of the same host",
        ),
        pytest.param(
            {"url": "a/b"},
            {"url": "a/b", **WITHOUT_SOURCE_FIELDS, "credentialsSecretRef": None},
            id="another host",
        ),
        pytest.param(
            {"url": "a/b", "sha256": "1" * 64, "credentialsSecretRef": {"name": "hub"}},
            {
                "url": "a/b",
                "baseModel": None,
                "sha256": "1" * 64,
                "credentialsSecretRef": {"name": "hub"},
            },
            id="another source with its own digest and credentials",
        ),
        pytest.param(
            {"url": "https://[/"},
            {"url": "https://[/", **WITHOUT_SOURCE_FIELDS, "credentialsSecretRef": None},
            id="invalid url",
        ),
    ],
)
def test_spec_patch_has_only_the_differences(wanted: dict[str, Any], patch: dict[str, Any]) -> None:
    """A new url removes the fields of the old source. Storage and priority are never changed."""
    assert spec_patch(SPEC, wanted) == patch


def body(name: str, *, ready: bool = True, **status: Any) -> dict[str, Any]:
    """Return a resource with this status, whose Ready condition changed at 12:00."""
    since = "2026-05-01T12:00:00Z"
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": since}]
    metadata = {"name": name, "creationTimestamp": "2026-05-01T11:00:00Z"}
    return {"metadata": metadata, "spec": {}, "status": {"conditions": conditions, **status}}


def test_ready_models_are_listed_by_id_with_their_load_time() -> None:
    """The time has the vendor's format and is in UTC; models that are not ready are left out."""
    artifact = {"lastUpdateTime": "2023-01-25T12:52:22+01:00"}
    models = [body("b", artifact=artifact), body("a", artifact=artifact), body("c", ready=False)]
    models[1]["spec"]["modelId"] = "hf-model"
    time = "01/25/2023 11:52:22"
    assert vendor.loaded(models) == [
        {"load_data": time, "model_id": "b"},
        {"load_data": time, "model_id": "hf-model"},
    ]


def test_model_whose_files_are_missing_is_not_on_the_server() -> None:
    """get_all_models does not list the model; verify_model's message has cause and remedy."""
    model = body("a", ready=False, phase="Failed", artifact={"lastUpdateTime": "2026-01-01"})
    why = f"files of a are missing. {Reason.ARTIFACT_MISSING.remedy}"
    stalled = {"type": "Stalled", "status": "True", "reason": "ArtifactMissing", "message": why}
    model["status"]["conditions"].append(stalled)
    assert vendor.loaded([model]) == []
    assert vendor.not_ready(model) == f"Model is not on server: Failed: {why}"


def test_queue_time_is_the_wait_of_the_oldest_queued_model() -> None:
    """The wait starts when the model became unready, or was created. Only queued models count."""
    now = datetime(2026, 5, 1, 12, 1, 30, tzinfo=UTC)
    queued = body("a", ready=False, phase="Queued")
    created = {"creationTimestamp": "2026-05-01T12:01:00Z"}
    fresh = {"metadata": created, "status": {"phase": "Queued"}}
    loading = body("b", ready=False, phase="Downloading")
    assert vendor.queue_seconds([queued, fresh, loading], now) == 90
    assert vendor.queue_seconds([fresh], now) == 30
    assert vendor.queue_seconds([loading], now) == 0


def test_message_of_an_unready_model_has_phase_and_cause() -> None:
    """The message of the Stalled condition has precedence over that of Ready."""
    model = body("a", ready=False, phase="Downloading", progress={"percent": 40})
    model["status"]["conditions"][0]["message"] = "2 of 5 GB"
    assert vendor.not_ready(model) == "Model is not on server: Downloading 40 %: 2 of 5 GB"
    stalled = {"type": "Stalled", "status": "True", "message": "no such repo; check spec.url"}
    model["status"] |= {"phase": "Failed", "progress": None}
    model["status"]["conditions"].append(stalled)
    assert vendor.not_ready(model) == (
        "Model is not on server: Failed: no such repo; check spec.url"
    )


def test_api_errors_do_not_reveal_accounts_values_or_addresses() -> None:
    """The response has a status code, and a message without values, accounts and addresses."""
    invalid = InvalidError("secret", 422)
    value = 'Invalid value: "https://a/?token=\\"secret": too long by far'
    invalid.causes = (("spec.url", value), ("spec.url", value))
    forbidden = ForbiddenError("serviceaccount:x cannot create", 403)
    unavailable = map_api_error(UnavailableError("GET https://10.0.0.1: no answer"))
    assert map_api_error(invalid).status == 400
    assert map_api_error(invalid).message == "spec.url: too long by far"
    unsupported = InvalidError("secret", 422)
    unsupported.causes = (("spec.revision", 'Unsupported value: "secret": supported values: "a"'),)
    assert map_api_error(unsupported).message == 'spec.revision must be one of "a"'
    assert (unavailable.status, unavailable.retry_after) == (503, 5)
    assert "10.0.0.1" not in unavailable.message
    assert map_api_error(forbidden).status == 503
    assert "serviceaccount" not in map_api_error(forbidden).message
    forbidden.namespace_terminating = True
    assert map_api_error(forbidden).status == 409
    assert map_api_error(ForbiddenError("exceeded quota: models", 403)).status == 409
