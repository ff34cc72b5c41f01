"""The vendor's words and what they mean as a resource; pure."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sd_api.names import MODEL_ID_PATTERN, NAME_MAX_LENGTH
from sd_api.spec import ModelType
from sd_operator.base.errors import ForbiddenError, InvalidError, UnavailableError
from sd_operator.gateway import bodies, vendor
from sd_operator.gateway.errors import RefusedError, refusal
from sd_operator.gateway.models import spec_patch
from sd_operator.gateway.naming import resource_name
from sd_operator.gateway.vendor import LoadModel, LoadModelV2, LoadVae

QUICK = settings(max_examples=50, deadline=None)
LINK = "https://civitai.com/api/download/models/94640"
ONE = {"url": LINK, "model_id": "a", "model_type": "custom_ckpt"}
LOAD = {
    "url": LINK,
    "modelType": "custom_ckpt",
    "fromSafetensors": None,
    "revision": "fp32",
    "upcastAttention": None,
    "webhook": None,
}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        pytest.param({}, {}, id="the vendor's default precision is fp32"),
        pytest.param({"revision": "fp16"}, {"revision": "fp16"}, id="revision"),
        pytest.param({"from_safetensors": "yes"}, {"fromSafetensors": True}, id="safetensors"),
        pytest.param({"from_safetensors": "no"}, {}, id="no is nothing"),
        pytest.param({"upcast_attention": "YES"}, {"upcastAttention": True}, id="upcast"),
        pytest.param({"upcast_attention": "no"}, {}, id="no upcast"),
        pytest.param({"webhook": "https://a.b/c"}, {"webhook": "https://a.b/c"}, id="webhook"),
        pytest.param(
            {"webhook": "", "revision": None, "from_safetensors": ""}, {}, id="blanks are nothing"
        ),
        pytest.param({"track_id": 7, "key": "k"}, {}, id="what is unknown is passed over"),
    ],
)
def test_load_model_means(said: dict[str, Any], meant: dict[str, Any]) -> None:
    """None: the field is to be absent."""
    assert LoadModel.model_validate(ONE | said).spec() == LOAD | meant


@pytest.mark.parametrize(
    ("category", "form", "kind", "safetensors"),
    [
        ("stable_diffusion", "ckpt", "custom_ckpt", None),
        ("stable_diffusion", "pt", "custom_ckpt", None),
        ("stable_diffusion", "safetensors", "custom_ckpt", True),
        ("stable_diffusion", "diffusers", "huggingface", None),
        ("stable_diffusion_xl", "safetensors", "custom_ckpt", True),
        ("stable_diffusion_xl", "diffusers", "huggingface", None),
        ("lora", "safetensors", "lora", True),
        ("lora", "pt", "lora", None),
        ("lora", "diffusers", "lora", None),
        ("controlnet", "diffusers", "controlnet", None),
        ("controlnet", "safetensors", "controlnet", True),
    ],
)
def test_load_model_v2_means(category: str, form: str, kind: str, safetensors: bool | None) -> None:
    """Type by category and format."""
    said = {"url": LINK, "model_id": "a", "model_category": category, "model_format": form}
    assert LoadModelV2.model_validate(said).spec() == {
        "url": LINK,
        "modelType": kind,
        "fromSafetensors": safetensors,
        "revision": "fp32",
        "webhook": None,
    }


@pytest.mark.parametrize(
    ("form", "safetensors"), [("diffusers", None), ("safetensors", True), ("pt", None)]
)
def test_load_vae_means(form: str, safetensors: bool | None) -> None:
    """Precision is not spoken of, so what was said by other means stays."""
    said = {"vae_id": "v", "vae_url": "a/b", "vae_type": form}
    assert LoadVae.model_validate(said).spec() == {
        "url": "a/b",
        "modelType": "vae",
        "fromSafetensors": safetensors,
        "webhook": None,
    }


def test_all_model_types_can_be_said() -> None:
    """The vendor's six, and vae."""
    said = get_args(LoadModel.model_fields["model_type"].annotation)
    assert set(said) == {one.value for one in ModelType}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        pytest.param(
            {"url": None, "model_id": "", "model_type": None},
            "url is required; model_id is required; model_type is required",
            id="all missing",
        ),
        pytest.param({"model_id": "a b"}, "model_id must be 1 to 63 letters", id="id"),
        pytest.param({"model_id": "a" * 64}, "model_id must be 1 to 63 letters", id="long id"),
        pytest.param({"model_id": "../a"}, "model_id must be 1 to 63 letters", id="path"),
        pytest.param({"model_type": "sdxl"}, "model_type: Input should be", id="type"),
        pytest.param({"revision": "fp8"}, "revision: Input should be", id="revision"),
        pytest.param({"from_safetensors": "maybe"}, "from_safetensors: Input", id="yes or no"),
        pytest.param({"url": "h" * 2049}, "url: String should have at most 2048", id="long url"),
        pytest.param({"url": ["a"]}, "url: Input should be a valid string", id="list"),
    ],
)
def test_a_wrong_field_is_named(said: dict[str, Any], complaint: str) -> None:
    """By the vendor's word for it, without what was sent."""
    with pytest.raises(ValidationError) as error:
        LoadModel.model_validate(ONE | said)
    text = vendor.complaint(error.value)
    assert text.startswith(complaint)
    assert LINK not in text


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("majicmix-realistic", "majicmix-realistic"),
        ("a" * 63, "a" * 63),
        ("a" * 64, "a" * 40),
        ("My_Model.v1", "my-model-v1"),
        ("my.model", "my-model"),
        ("A", "a"),
        ("a-.-b", "a-b"),
    ],
)
def test_names(model_id: str, name: str) -> None:
    """The id itself, or a slug with the id's digest."""
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    assert resource_name(model_id) == (name if name == model_id else f"{name}-{digest}")


@QUICK
@given(st.from_regex(MODEL_ID_PATTERN.replace("$", r"\Z")))
def test_every_id_has_a_name(model_id: str) -> None:
    """A DNS label, which names itself."""
    name = resource_name(model_id)
    assert len(name) <= NAME_MAX_LENGTH
    assert resource_name(name) == name


@pytest.mark.parametrize(
    ("raw", "kind", "fields"),
    [
        pytest.param(b'{"key":"k"}', "application/json", {"key": "k"}, id="JSON"),
        pytest.param(b'{"key":"k"}', "text/plain;charset=UTF-8", {"key": "k"}, id="text"),
        pytest.param(b'{"key":"k"}', "", {"key": "k"}, id="no type"),
        pytest.param(b'\xef\xbb\xbf{"key":"k"}', "", {"key": "k"}, id="byte order mark"),
        pytest.param(b'{"key":"k=1&a"}', bodies.FORM, {"key": "k=1&a"}, id="JSON as a form"),
        pytest.param(
            b"key=k&url=a%2Fb&x=", bodies.FORM, {"key": "k", "url": "a/b", "x": ""}, id="form"
        ),
        pytest.param(b"", "application/json", {}, id="nothing"),
        pytest.param(b" \n", "", {}, id="blanks"),
        pytest.param(b"key=k", "text/plain", None, id="a form that does not say so"),
        pytest.param(b'{"key":', "application/json", None, id="cut short"),
        pytest.param(b"[]", "application/json", None, id="a list"),
        pytest.param(b'"key"', "application/json", None, id="a string"),
        pytest.param(b"\xff\xfe{}", "application/json", None, id="no UTF-8"),
        pytest.param(b'{"key":"\\ud800"}', "application/json", None, id="half a surrogate pair"),
        pytest.param(b"[" * 60000, "application/json", None, id="deep"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "application/json", None, id="huge number"),
        pytest.param(b"a=1&" * 101, bodies.FORM, None, id="too many fields"),
    ],
)
def test_bodies(raw: bytes, kind: str, fields: dict[str, Any] | None) -> None:
    """As the vendor's users send them; None: refused with 400."""
    if fields is None:
        with pytest.raises(RefusedError) as error:
            bodies.parse(raw, kind)
        assert error.value.status == 400
        assert error.value.message.startswith("The body ")
    else:
        assert bodies.parse(raw, kind) == fields


@QUICK
@given(st.binary(max_size=200), st.sampled_from(["", "application/json", bodies.FORM]))
def test_every_body_is_read_or_refused(raw: bytes, kind: str) -> None:
    """Nothing else comes of it."""
    status = 200
    try:
        bodies.parse(raw, kind)
    except RefusedError as error:
        status = error.status
    assert status in (200, 400)


SPEC = {
    "url": LINK,
    "modelType": "custom_ckpt",
    "revision": "fp16",
    "sha256": "0" * 64,
    "baseModel": "sd1",
    "credentialsSecretRef": {"name": "civitai"},
    "storage": {"claimName": "fast"},
    "priority": 5,
}
ENDED = {"sha256": None, "baseModel": None}


@pytest.mark.parametrize(
    ("wanted", "patch"),
    [
        pytest.param({"url": LINK, "revision": "fp16", "webhook": None}, {}, id="as it is"),
        pytest.param({"revision": "fp32"}, {"revision": "fp32"}, id="one field"),
        pytest.param({"revision": None}, {"revision": None}, id="a field to be absent"),
        pytest.param(
            {"url": "https://civitai.com/2"},
            {"url": "https://civitai.com/2", **ENDED},
            id="another file of the same host",
        ),
        pytest.param(
            {"url": "a/b"},
            {"url": "a/b", **ENDED, "credentialsSecretRef": None},
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
            id="another source with all that belongs to it",
        ),
        pytest.param(
            {"url": "https://[/"},
            {"url": "https://[/", **ENDED, "credentialsSecretRef": None},
            id="no url at all",
        ),
    ],
)
def test_only_what_differs_is_changed(wanted: dict[str, Any], patch: dict[str, Any]) -> None:
    """Storage and priority, which the vendor has no words for, stay in any case."""
    assert spec_patch(SPEC, wanted) == patch


def body(name: str, *, ready: bool = True, **status: Any) -> dict[str, Any]:
    """A model with a status."""
    since = "2026-05-01T12:00:00Z"
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": since}]
    metadata = {"name": name, "creationTimestamp": "2026-05-01T11:00:00Z"}
    return {"metadata": metadata, "spec": {}, "status": {"conditions": conditions, **status}}


def test_models_are_listed_by_id_with_the_time_of_their_load() -> None:
    """In the vendor's form, in UTC; models that are not ready are not there."""
    at = {"lastUpdateTime": "2023-01-25T12:52:22+01:00"}
    known = [body("b", artifact=at), body("a", artifact=at), body("c", ready=False)]
    known[1]["spec"]["modelId"] = "hf-model"
    time = "01/25/2023 11:52:22"
    assert vendor.loaded(known) == [
        {"load_data": time, "model_id": "b"},
        {"load_data": time, "model_id": "hf-model"},
    ]


def test_the_oldest_queued_model_tells_how_long_the_queue_is() -> None:
    """Since it is not ready; who is no more queued does not count."""
    now = datetime(2026, 5, 1, 12, 1, 30, tzinfo=UTC)
    queued = body("a", ready=False, phase="Queued")
    created = {"creationTimestamp": "2026-05-01T12:01:00Z"}
    fresh = {"metadata": created, "status": {"phase": "Queued"}}
    loading = body("b", ready=False, phase="Downloading")
    assert vendor.queue_seconds([queued, fresh, loading], now) == 90
    assert vendor.queue_seconds([fresh], now) == 30
    assert vendor.queue_seconds([loading], now) == 0


def test_what_is_not_ready_says_why() -> None:
    """The remedy goes before the state."""
    known = body("a", ready=False, phase="Downloading", progress={"percent": 40})
    known["status"]["conditions"][0]["message"] = "2 of 5 GB"
    assert vendor.not_ready(known) == "Model is not on server: Downloading 40 %: 2 of 5 GB"
    stalled = {"type": "Stalled", "status": "True", "message": "no such repo; check spec.url"}
    known["status"] |= {"phase": "Failed", "progress": None}
    known["status"]["conditions"].append(stalled)
    assert vendor.not_ready(known) == (
        "Model is not on server: Failed: no such repo; check spec.url"
    )


def test_refusals_of_the_api_server_are_told_without_its_words() -> None:
    """Accounts, values and addresses stay in the log."""
    invalid = InvalidError("secret", 422)
    value = 'Invalid value: "https://a/?token=\\"secret": too long by far'
    invalid.causes = (("spec.url", value), ("spec.url", value))
    forbidden = ForbiddenError("serviceaccount:x cannot create", 403)
    away = refusal(UnavailableError("GET https://10.0.0.1: no answer"))
    assert refusal(invalid).status == 400
    assert refusal(invalid).message == "spec.url: too long by far"
    assert (away.status, away.retry_after) == (503, 5)
    assert "10.0.0.1" not in away.message
    assert refusal(forbidden).status == 503
    assert "serviceaccount" not in refusal(forbidden).message
    forbidden.namespace_terminating = True
    assert refusal(forbidden).status == 409
    assert refusal(ForbiddenError("exceeded quota: models", 403)).status == 409
