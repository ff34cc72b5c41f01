"""Tests of the values that the gallery shows: cards, pictures, announcements, texts to copy."""

from __future__ import annotations

import ast
import textwrap

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sd_api.choices import ModelType
from sd_api.reasons import Reason
from sd_api.spec import Components
from sd_operator.gateway.gallery import views
from sd_operator.gateway.gallery.art import art
from sd_operator.gateway.gallery.snippets import manifest_yaml, snippet
from sd_operator.resources.model import Model
from tests.support.gateway.gallerymodels import artifact, card_of, condition, failed, loading, ready
from tests.support.rules.observed import UID, body

STALLED_BUT_SERVED = {
    **ready(UID, "sketch"),
    "conditions": [
        condition("Ready", "True", "Loaded"),
        condition("Stalled", "True", "SourceNotFound", "No such file"),
    ],
}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param({}, ("Pending", "wait", "", None), id="just-created"),
        pytest.param(
            {"phase": "Queued", "reason": "Queued"}, ("Queued", "wait", "", None), id="queued"
        ),
        pytest.param(
            loading(42),
            (
                "Downloading",
                "busy",
                "",
                views.Bar("Downloading", 42, loading(42)["progress"]["text"]),
            ),
            id="loading",
        ),
        pytest.param(ready(UID, "sketch"), ("Ready", "good", "", None), id="ready"),
        pytest.param(
            failed(Reason.NOT_A_MODEL, "A web page"),
            ("Failed", "bad", "not a model", None),
            id="failed",
        ),
        pytest.param(
            {**loading(42), "phase": "Failed"},
            ("Failed", "bad", "downloading", None),
            id="no-bar-after-a-failure",
        ),
        pytest.param(
            STALLED_BUT_SERVED, ("Ready", "bad", "source not found", None), id="reload-failed"
        ),
        pytest.param({"phase": "Nonsense"}, ("Pending", "wait", "", None), id="unknown-phase"),
    ],
)
def test_card_shows_the_state_of_a_model(status, expected):
    """A card has phase, tone, progress, and the reason in words if the phase does not imply it."""
    card = card_of(body(status))
    assert (card.phase, card.tone, card.note, card.bar) == expected


def test_card_shows_type_base_and_size():
    """A card has the display names of type and base model, and the size."""
    card = card_of(body(ready(UID, "sketch", baseModel="sdxl"), modelType="lora"))
    assert (card.type_name, card.base, card.size) == ("LoRA", "SDXL", "2.1 GB")


def test_every_model_type_has_its_own_display_name():
    """No two model types share a display name."""
    assert len(set(views.TYPES.values())) == len(ModelType)


def test_each_name_has_a_picture_of_its_own():
    """Different names have different pictures, and a name always has the same picture."""
    pictures = {art(f"model-{number}") for number in range(100)}
    assert len(pictures) == 100
    art.cache_clear()
    assert art("model-1") in pictures


@pytest.mark.parametrize(
    ("url", "text", "link"),
    [
        pytest.param("https://e.com/m", "https://e.com/m", "https://e.com/m", id="link"),
        pytest.param("https://u:p@e.com/m", "https://e.com/m", None, id="userinfo"),
        pytest.param("https://e.com/m?token=x", "https://e.com/m?…", None, id="query"),
        pytest.param("org/name", "org/name", None, id="repo"),
        pytest.param("javascript:alert(1)", "javascript:alert(1)", None, id="javascript"),
        pytest.param(
            "javascript://e.com/%0aalert(1)",
            "javascript://e.com/%0aalert(1)",
            None,
            id="javascript-with-a-host",
        ),
        pytest.param("data:text/html,x", "data:text/html,x", None, id="data"),
    ],
)
def test_source_is_shown_without_secrets(url, text, link):
    """Only an http(s) url that has no secrets is also a link."""
    assert views.source(Model.from_body(body(url=url))) == (text, link)


def test_only_new_phases_and_quarters_are_announced():
    """A new phase, and each further quarter of the progress, is announced; other steps are not."""
    cards = {percent: card_of(body(loading(percent))) for percent in (10, 24, 25, 49)}
    done = card_of(body(ready(UID, "sketch")))
    assert views.news(None, cards[10]) == "sketch: Downloading"
    assert views.news(cards[10], cards[24]) == ""
    assert views.news(cards[24], cards[25]).startswith("sketch: 25% of")
    assert views.news(cards[25], cards[49]) == ""
    assert views.news(cards[49], done) == "sketch: Ready"


# Texts to copy


def test_yaml_has_only_what_a_user_would_apply():
    """Status, defaults and metadata that the API server or the operator sets are left out."""
    model = body(
        ready(UID, "sketch"), modelType="lora", priority=0, weights="standard", suspend=True
    )
    model["metadata"] |= {
        "labels": {"team": "art"},
        "managedFields": [{"manager": "kubectl"}],
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "sd-operator.dev/reload": "1",
            "example.com/owner": "ann",
        },
    }
    assert yaml.safe_load(manifest_yaml(model)) == {
        "apiVersion": "sd-operator.dev/v1alpha1",
        "kind": "StableDiffusionModel",
        "metadata": {
            "name": "sketch",
            "namespace": "art",
            "labels": {"team": "art"},
            "annotations": {"example.com/owner": "ann"},
        },
        "spec": {
            "url": "https://example.com/model.safetensors",
            "modelType": "lora",
            "suspend": True,
        },
    }


def test_yaml_has_no_secrets():
    """A comment says that the secret parts of urls are left out."""
    secret = "https://ann:secret@e.com/m?token=secret"
    text = manifest_yaml(
        body(url=secret, webhook=secret, originalConfig=secret, vae={"url": secret})
    )
    assert "secret" not in text.replace("Secret parts", "")
    assert text.startswith("# Secret parts of URLs are left out")


def test_yaml_has_no_secrets_of_components():
    """No url of spec.components shows its secret parts."""
    secret = "https://ann:secret@e.com/m?token=secret"
    for name in Components.model_json_schema()["properties"]:
        text = manifest_yaml(body(components={name: secret if name == "from" else {"url": secret}}))
        assert "secret" not in text.replace("Secret parts", ""), name
        assert text.startswith("# Secret parts of URLs are left out"), name


@given(st.text(max_size=100))
def test_any_text_survives_the_yaml(text):
    """Text from the resource cannot change the structure of the YAML."""
    model = body(webhookSecretRef={"name": text, "key": text})
    assert yaml.safe_load(manifest_yaml(model))["spec"]["webhookSecretRef"]["name"] == text


CODE = {
    ("custom_ckpt", "StableDiffusionPipeline", "sd-1"): "StableDiffusionPipeline.from_pretrained",
    (
        "huggingface",
        "StableDiffusionXLInpaintPipeline",
        "sdxl",
    ): "XLInpaintPipeline.from_pretrained",
    ("api_trained", None, None): "DiffusionPipeline.from_pretrained",
    ("lora", None, "sdxl"): "pipe.load_lora_weights(folder)",
    ("embeddings", None, "sd-1"): "pipe.load_textual_inversion(folder)",
    ("embeddings", None, "sdxl"): 'weight_name="learned_embeds_2.safetensors"',
    (
        "controlnet",
        "ControlNetModel",
        "sd-1",
    ): "controlnet = ControlNetModel.from_pretrained(folder",
    ("vae", "AutoencoderKL", "sd-1"): "vae = AutoencoderKL.from_pretrained(folder",
    ("custom_ckpt", "no.class", "sd-1"): "import DiffusionPipeline\n",
}


@pytest.mark.parametrize(("model_type", "pipeline_class", "base"), CODE)
def test_snippet_fits_the_model_type(model_type, pipeline_class, base):
    """The snippet is valid Python and imports exactly the names that it uses."""
    status = ready(UID, "sketch", pipelineClass=pipeline_class, baseModel=base)
    code = snippet(Model.from_body(body(status, modelType=model_type)))
    assert code is not None
    assert CODE[model_type, pipeline_class, base] in code
    tree = ast.parse(code)
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported == names & (imported | {"torch", "os"}), textwrap.indent(code, "  ")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp16", "torch.float16"), ("bf16", "torch.bfloat16"), ("fp32", "torch.float32")],
)
def test_snippet_keeps_the_precision(precision, dtype):
    """The snippet sets torch_dtype to the published precision; diffusers' default is fp32."""
    code = snippet(Model.from_body(body(ready(UID, "sketch", precision=precision))))
    assert f"torch_dtype={dtype}" in str(code)


def test_unpublished_model_has_no_snippet():
    """There is no snippet for a model that is still loading, or whose files are missing."""
    assert snippet(Model.from_body(body(loading(42)))) is None
    gone = ready(UID, "sketch", missingTime="2026-01-02T03:04:05Z")
    assert snippet(Model.from_body(body(gone))) is None


def test_statuses_of_these_tests_are_valid():
    """The statuses in this file are valid. An invalid status would be ignored by these tests."""
    for status in (
        ready(UID, "x"),
        loading(1),
        failed(Reason.NOT_A_MODEL, "x"),
        STALLED_BUT_SERVED,
    ):
        assert Model.from_body(body(status)).status.phase
    assert artifact(UID, "x")["immutablePath"].startswith(f".store/{UID}/")
