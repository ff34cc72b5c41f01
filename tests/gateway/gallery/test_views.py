"""What the gallery shows of a model: cards, details, texts to copy, news and what is found."""

from __future__ import annotations

import ast
import textwrap
from datetime import timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_operator.base import times
from sd_operator.gateway.gallery import views
from sd_operator.gateway.gallery.snippets import manifest_yaml, snippet
from sd_operator.resources.model import Model
from tests.support.gateway.gallerymodels import JOB, artifact, condition, failed, loading, ready
from tests.support.rules.observed import NOW, UID, body

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
            ("Failed", "bad", "NotAModel", None),
            id="failed",
        ),
        pytest.param(
            {**loading(42), "phase": "Failed"}, ("Failed", "bad", "Downloading", None), id="no-bar"
        ),
        pytest.param(
            STALLED_BUT_SERVED, ("Ready", "bad", "SourceNotFound", None), id="reload-failed"
        ),
        pytest.param({"phase": "Nonsense"}, ("Pending", "wait", "", None), id="unreadable"),
    ],
)
def test_a_card_says_where_a_model_stands(status, expected):
    """Phase, tone, what else must be known, and how far a load is."""
    card = views.card(body(status))
    assert (card.phase, card.tone, card.note, card.bar) == expected


def test_a_card_says_what_a_model_is():
    """Type and base in words for people."""
    card = views.card(body(ready(UID, "sketch", baseModel="sdxl"), modelType="lora"))
    assert (card.type_name, card.base, card.size) == ("LoRA", "SDXL", "2.1 GB")


def test_every_type_has_a_name():
    """Which no other has."""
    assert len(set(views.TYPES.values())) == len(ModelType)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        pytest.param({}, True, id="all"),
        pytest.param({"text": "SKE"}, True, id="part-of-the-name"),
        pytest.param({"text": "example checkpoint"}, True, id="all-words-anywhere"),
        pytest.param({"text": "example lora"}, False, id="a-word-is-missing"),
        pytest.param({"text": "secret"}, False, id="a-token-in-the-source-is-not-searched"),
        pytest.param({"type": "custom_ckpt"}, True, id="type"),
        pytest.param({"type": "lora"}, False, id="other-type"),
        pytest.param({"phase": "Pending"}, True, id="phase"),
        pytest.param({"phase": "Ready"}, False, id="other-phase"),
    ],
)
def test_a_filter_takes_what_it_says(asked, taken):
    """Text, type and phase together."""
    card = views.card(body(url="https://example.com/m.safetensors?token=secret"))
    assert views.Filter(**asked).takes(card) is taken


def test_a_filters_address_holds_only_what_is_set():
    """So that it can be shared."""
    assert views.Filter().query == ""
    assert views.Filter(text="a&b", phase="Ready").query == "q=a%26b&phase=Ready"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_shown_with_its_remedy(reason):
    """Once, though message and two conditions repeat it; help comes first."""
    first, second = views.detail(body(failed(reason, "It is so")), NOW).conditions
    assert (first.type, first.message, first.tone) == ("Stalled", "It is so.", "bad")
    assert first.remedy == reason.remedy.replace("<status.job.name>", JOB)
    assert (second.type, second.message, second.remedy) == ("Ready", "", "")


def test_a_detail_says_what_is_published():
    """With digests, paths and times."""
    status = ready(UID, "sketch", sharedBytes=1_900_000_000)
    made = body(status)
    made["metadata"]["creationTimestamp"] = times.stamp(NOW - timedelta(minutes=5))
    detail = views.detail(made, NOW)
    facts = dict(detail.facts)
    assert facts["Size"] == "2.1 GB in 14 files, 1.9 GB shared"
    assert facts["Folder's digest"] == f"sha256:{'ab' * 32}"
    assert facts["Path"] == "sketch in claim models"
    assert detail.created == "5 min ago"


@pytest.mark.parametrize(
    ("url", "text", "link"),
    [
        pytest.param("https://e.com/m", "https://e.com/m", "https://e.com/m", id="link"),
        pytest.param("https://u:p@e.com/m", "https://e.com/m", None, id="userinfo"),
        pytest.param("https://e.com/m?token=x", "https://e.com/m?…", None, id="query"),
        pytest.param("org/name", "org/name", None, id="repo"),
        pytest.param("javascript:alert(1)", "javascript:alert(1)", None, id="javascript"),
        pytest.param(
            "javascript://e.com/%0aalert(1)", "javascript://e.com/%0aalert(1)", None, id="j2"
        ),
        pytest.param("data:text/html,x", "data:text/html,x", None, id="data"),
    ],
)
def test_a_source_is_shown_without_secrets_and_linked_where_it_leads(url, text, link):
    """Only what is http and whole is a link."""
    assert views.source(Model.from_body(body(url=url))) == (text, link)


def test_news_are_what_is_worth_an_interruption():
    """Another phase, each quarter of a load; not every step."""
    at = {percent: views.card(body(loading(percent))) for percent in (10, 24, 25, 49)}
    done = views.card(body(ready(UID, "sketch")))
    assert views.news(None, at[10]) == "sketch: Downloading"
    assert views.news(at[10], at[24]) == ""
    assert views.news(at[24], at[25]).startswith("sketch: 25% of")
    assert views.news(at[25], at[49]) == ""
    assert views.news(at[49], done) == "sketch: Ready"


# Texts to copy


def test_the_yaml_is_what_a_user_would_apply():
    """No status, nothing that servers add, no defaults; and it says the same."""
    made = body(
        ready(UID, "sketch"), modelType="lora", priority=0, weights="standard", suspend=True
    )
    made["metadata"] |= {
        "labels": {"team": "art"},
        "managedFields": [{"manager": "kubectl"}],
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "sd-operator.dev/reload": "1",
            "example.com/owner": "ann",
        },
    }
    assert yaml.safe_load(manifest_yaml(made)) == {
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


def test_the_yaml_holds_no_secret_and_says_so():
    """Wherever the spec has a link."""
    secret = "https://ann:secret@e.com/m?token=secret"
    text = manifest_yaml(
        body(url=secret, webhook=secret, originalConfig=secret, vae={"url": secret})
    )
    assert "secret" not in text.replace("Secret parts", "")
    assert text.startswith("# Secret parts of links are left out")


@given(st.text(max_size=100))
def test_the_yaml_of_any_text_reads_as_that_text(text):
    """Nothing in it makes a document of its own."""
    made = body(webhookSecretRef={"name": text, "key": text})
    assert yaml.safe_load(manifest_yaml(made))["spec"]["webhookSecretRef"]["name"] == text


OPENED = {
    ("custom_ckpt", "StableDiffusionPipeline", "sd1"): "StableDiffusionPipeline.from_pretrained",
    (
        "huggingface",
        "StableDiffusionXLInpaintPipeline",
        "sdxl",
    ): "XLInpaintPipeline.from_pretrained",
    ("api_trained", None, None): "DiffusionPipeline.from_pretrained",
    ("lora", None, "sdxl"): "pipe.load_lora_weights(folder)",
    ("embeddings", None, "sd1"): "pipe.load_textual_inversion(folder)",
    ("embeddings", None, "sdxl"): 'weight_name="learned_embeds_2.safetensors"',
    ("controlnet", "ControlNetModel", "sd1"): "controlnet = ControlNetModel.from_pretrained(folder",
    ("vae", "AutoencoderKL", "sd1"): "vae = AutoencoderKL.from_pretrained(folder",
    ("custom_ckpt", "no.class", "sd1"): "import DiffusionPipeline\n",
}


@pytest.mark.parametrize(("kind", "name", "base"), OPENED)
def test_the_snippet_opens_a_model_as_its_type_is_opened(kind, name, base):
    """And is Python that imports what it uses."""
    status = ready(UID, "sketch", pipelineClass=name, baseModel=base)
    code = snippet(Model.from_body(body(status, modelType=kind)))
    assert code is not None
    assert OPENED[kind, name, base] in code
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
    ("precision", "said"),
    [("fp16", "torch.float16"), ("bf16", "torch.bfloat16"), ("fp32", "torch.float32")],
)
def test_the_snippet_keeps_the_precision(precision, said):
    """Without it diffusers makes fp32 of everything."""
    code = snippet(Model.from_body(body(ready(UID, "sketch", precision=precision))))
    assert f"torch_dtype={said}" in str(code)


def test_there_is_no_snippet_before_there_is_a_model():
    """Nothing to open."""
    assert snippet(Model.from_body(body(loading(42)))) is None


def test_the_example_statuses_are_the_contracts():
    """Else these tests would test nothing."""
    for status in (
        ready(UID, "x"),
        loading(1),
        failed(Reason.NOT_A_MODEL, "x"),
        STALLED_BUT_SERVED,
    ):
        assert Model.from_body(body(status)).status.phase
    assert artifact(UID, "x")["immutablePath"].startswith(f".store/{UID}/")
