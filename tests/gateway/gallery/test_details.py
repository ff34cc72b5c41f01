"""Tests of a model's page: the values that it shows, and their order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from html import unescape
from pathlib import Path

import pytest

from sd_api.names import RECEIPT_FILE
from sd_api.reasons import Reason
from sd_api.wire import Receipt
from sd_operator.base import times
from sd_operator.gateway.gallery import components, details, words
from sd_operator.gateway.gallery.pages import render
from sd_operator.gateway.gallery.related import related
from sd_operator.resources.model import Model
from tests.support.gateway.gallerymodels import HASH, card_of, failed, loading, ready
from tests.support.rules.observed import NOW, UID, body

CARD = {
    "title": "Sketch of a fox",
    "author": "Ann",
    "license": "Apache 2.0",
    "triggerWords": ["fox", "red fur"],
    "resolution": "512x768",
    "recommended": "Euler a, 30 steps",
    "page": "https://civitai.com/models/1",
}
RECEIPT = {
    "uid": UID,
    "loadHash": HASH,
    "source": {},
    "artifact": {"digest": "blake3:" + "ab" * 32, "sizeBytes": 1, "files": 4},
    "files": {
        name: {"blake3": "ab" * 32, "size": size}
        for name, size in (
            ("model_index.json", 500),
            ("vae/diffusion_pytorch_model.safetensors", 200_000_000),
            ("unet/diffusion_pytorch_model.safetensors", 1_800_000_000),
            ("unet/config.json", 1_000),
            ("preview.png", 300_000),
            ("picture.jpg", 200_000),
            (".sd-card.json", 900),
        )
    },
}


def detail_of(source: dict, receipt: Receipt | None = None) -> details.Detail:
    """Return the values that the page of a model shows."""
    return details.detail(Model.from_body(source), source, NOW, receipt)


def page(
    model: dict, *, images: Mapping[str, tuple[str, ...]] = {}, others: tuple[dict, ...] = ()
) -> str:
    """Return the text of a model's page."""
    detail = detail_of(model)
    return unescape(
        render(
            "model.html",
            namespace="art",
            model=detail,
            events=words.events([], NOW),
            related=related(detail.card, map(card_of, others)),
            images=images,
            digest="",
        )
    )


def test_page_begins_with_what_people_look_for():
    """The order is: preview, name, state, use, card, files, source, related models, conditions."""
    status = ready(UID, "sketch", card=CARD)
    lora = body(ready(UID, "ink"), name="ink", modelType="lora")
    text = page(body(status), images={"sketch": ("preview.png", "picture.jpg")}, others=(lora,))
    places = [
        text.index(part)
        for part in (
            "/models/sketch/preview.png",
            "<h1>sketch</h1>",
            "Loaded 0 s ago.",
            ">Open it with<",
            ">About<",
            ">Files<",
            ">Source<",
            'href="/gallery/models/ink"',
            ">Conditions and Events<",
        )
    ]
    assert places == sorted(places)


def test_models_that_work_together_are_shown_with_their_pictures():
    """Related models are shown with their images, or with pictures made from their names."""
    others = [body(ready(UID, name), name=name, modelType="lora") for name in ("ink", "wash")]
    text = page(body(ready(UID, "sketch")), images={"ink": ("picture.jpg",)}, others=others)
    _, _, related_part = text.partition("Works with this model")
    assert "/models/ink/picture.jpg" in related_part
    assert "/models/wash/picture.jpg" not in related_part
    assert related_part.count("<svg") == 1


def test_page_shows_the_card_of_the_model():
    """The card's words for prompts can be copied; its page at the source is a link."""
    text = page(body(ready(UID, "sketch", card=CARD)))
    for part in ("Sketch of a fox", "fox, red fur", "Apache 2.0", "512 by 768", "Euler a, 30"):
        assert part in text
    assert 'data-copy="words"' in text
    assert 'href="https://civitai.com/models/1"' in text


@pytest.mark.parametrize(
    ("card", "settings"),
    [
        pytest.param(
            CARD,
            (("Native resolution", "512 by 768"), ("Settings", "Euler a, 30 steps")),
            id="both",
        ),
        pytest.param(
            {"resolution": "1024x1024"}, (("Native resolution", "1024 by 1024"),), id="one"
        ),
        pytest.param({"title": "fox"}, (), id="none"),
    ],
)
def test_page_shows_the_recommended_settings_if_the_card_has_them(card, settings):
    """The settings have a heading of their own, above the sentence that nobody has checked them."""
    model = body(ready(UID, "sketch", card=card))
    about = detail_of(model).about
    assert about is not None
    assert about.settings == settings
    text = page(model)
    assert (">Recommended settings<" in text) == bool(settings)
    if settings:
        assert text.index(">Recommended settings<") < text.index("Nobody has checked them")


@pytest.mark.parametrize(
    "card",
    [
        None,
        {},
        "text",
        {"title": 1, "triggerWords": "fox", "page": "javascript:alert(1)"},
        {"triggerWords": [1, None]},
    ],
    ids=["absent", "empty", "text", "wrong-types", "wrong-words"],
)
def test_card_without_a_readable_field_is_not_shown(card):
    """Values of other types, and pages that are not on the web, are left out."""
    assert detail_of(body(ready(UID, "sketch", card=card))).about is None


def test_page_of_an_embedding_shows_its_word():
    """An embedding's text for prompts is its word alone, without the trigger words of the card."""
    status = ready(UID, "sketch", card={"word": "<fox>", "triggerWords": ["other"]})
    about = detail_of(body(status, modelType="embeddings")).about
    assert about is not None
    assert about.prompt == "<fox>"


def test_files_and_origin_are_shown_apart():
    """The files have size, digest and path of the folder; the origin has the download's size."""
    kind = {"baseModel": "flux", "variant": "dev_fill", "format": "diffusers"}
    model = body(ready(UID, "sketch", sharedBytes=1_900_000_000, loraRank=8, **kind))
    model["metadata"]["creationTimestamp"] = times.stamp(NOW - timedelta(minutes=5))
    detail = detail_of(model)
    files, origin = dict(detail.files), dict(detail.origin)
    assert files["Size"] == "2.1 GB in 14 files, 1.9 GB shared"
    assert files["Folder digest"] == "blake3:" + "ab" * 32
    assert files["Path"] == "sketch in PVC models"
    assert (files["Variant"], files["Format"]) == ("dev_fill", "diffusers")
    assert files["LoRA rank"] == "8"
    assert detail.card.base == "FLUX.1"
    assert (origin["Downloaded"], origin["Created"]) == ("2.1 GB", "5 min ago")


def test_preview_names_its_prompt_if_the_spec_still_has_it():
    """Prompt, seed and steps are shown with the preview until the spec is edited.

    After an edit of the spec, those of the published preview are not known.
    """
    model = body(verify={"prompt": "a fox", "steps": 4})
    wanted = Model.from_body(model).wanted
    model["status"] = ready(UID, "sketch", immutablePath=f".store/{UID}/{wanted}")
    assert detail_of(model).painted == "“a fox”, seed 0, 4 steps"
    assert "Rendered with the prompt “a fox”" in page(model, images={"sketch": ("preview.png",)})
    assert "Rendered with the prompt" not in page(model)
    model["spec"]["verify"]["prompt"] = "a bear"
    assert detail_of(model).painted == ""


@pytest.mark.parametrize(
    ("status", "spec", "shown", "hidden"),
    [
        (ready(UID, "x"), {}, {"reload", "edit", "delete"}, {"suspend", "resume", "retype"}),
        (loading(1), {}, {"suspend", "reload", "edit", "delete"}, {"resume", "retype"}),
        ({"phase": "Pending"}, {"suspend": True}, {"resume", "edit"}, {"suspend"}),
        (failed(Reason.UNSUPPORTED_FORMAT, "x"), {}, {"retype", "reload"}, {"suspend"}),
        (failed(Reason.SOURCE_NOT_FOUND, "x"), {}, {"edit"}, {"retype"}),
    ],
    ids=["ready", "loading", "suspended", "wrong-type", "wrong-link"],
)
def test_page_offers_the_actions_of_its_state(status, spec, shown, hidden):
    """Another type is offered only if the type may be the cause of the failure."""
    text = page(body(status, **spec))
    assert all(f'id="{name}"' in text for name in shown)
    assert not any(f'id="{name}"' in text for name in hidden)


def test_type_that_the_source_shows_is_offered_first():
    """The first choice is to load the model without a type, unless the spec has none.

    The source then shows the type.
    """
    status = failed(Reason.UNSUPPORTED_FORMAT, "x")
    first, *others = detail_of(body(status, modelType="vae")).retypes
    assert first == ("", "The one that the source shows")
    assert "vae" not in dict(others)
    assert "" not in dict(detail_of(body(status)).retypes)


def test_deleted_model_offers_no_action():
    """The page of a model that is being deleted has no buttons: the model cannot be changed."""
    text = page(body(loading(1), deleted_ago=1))
    _, main, content = text.partition("<main")
    assert main
    assert "<form" not in content


def test_page_of_a_failed_model_unfolds_its_conditions():
    """The page has the remedy. The conditions are unfolded only if the model has failed."""
    text = page(body(failed(Reason.NOT_A_MODEL, "A web page")))
    assert f"<strong>What to do:</strong> {words.in_words(Reason.NOT_A_MODEL.remedy)}" in text
    assert 'id="history" open' in text
    assert 'id="history" open' not in page(body(loading(1)))


@pytest.mark.parametrize(
    ("base", "servers"),
    [
        ("sd-1", ["python3 server.py"]),
        ("sd-3", ["python3 server.py", "vllm serve"]),
        ("flux", ["python3 server.py", "sglang serve", "vllm serve"]),
    ],
)
def test_page_shows_the_servers_that_open_the_model(base, servers):
    """Each command resolves the link once, because a reload changes the link's target."""
    detail = detail_of(body(ready(UID, "sketch", baseModel=base)))
    commands = [server.command for server in detail.servers]
    assert [" ".join(command.split()[:2]) for command in commands] == servers
    assert all('"$(realpath /models/sketch)"' in command for command in commands)
    adapter = body(ready(UID, "sketch", baseModel=base), modelType="lora")
    assert detail_of(adapter).servers == ()


# Components


def store_with(tmp_path: Path, content: str) -> Path:
    """Return a volume with a receipt in the folder of the model's version."""
    folder = tmp_path / ".store" / UID / HASH
    folder.mkdir(parents=True)
    (folder / RECEIPT_FILE).write_text(content)
    return tmp_path


def test_components_are_read_from_the_receipt(tmp_path):
    """The components are folders and files, the largest first, without images and model card."""
    model = body(ready(UID, "sketch"))
    store = store_with(tmp_path, json.dumps(RECEIPT))
    receipt = components.read(store, Model.from_body(model))
    assert receipt is not None
    detail = detail_of(model, receipt)
    assert [(part.name, part.size, part.files) for part in detail.components] == [
        ("unet", "1.8 GB", "2 files"),
        ("vae", "200 MB", "1 file"),
        ("model_index.json", "500 B", "1 file"),
    ]
    assert detail.memory == "about 3.4 GB", "1.2 times 2.0 GB, and 1 GB"


def test_memory_is_estimated_from_the_status_without_a_receipt():
    """Without a receipt, a pipeline's memory is estimated from the size in its status.

    An adapter has no estimate: it is opened together with a pipeline.
    """
    assert detail_of(body(ready(UID, "sketch"))).memory == "about 3.5 GB"
    assert detail_of(body(ready(UID, "sketch"), modelType="lora")).memory == ""
    assert "This is an estimate" in page(body(ready(UID, "sketch")))


@pytest.mark.parametrize(
    "content",
    ["", "[]", json.dumps(RECEIPT | {"uid": "0" * 36}), json.dumps(RECEIPT) + " " * 2**20],
    ids=["empty", "not-a-receipt", "receipt-of-another-model", "too-large"],
)
def test_receipt_that_is_not_the_models_own_is_not_read(tmp_path, content):
    """A receipt that does not fit the status is ignored: anyone may have written it."""
    model = Model.from_body(body(ready(UID, "sketch")))
    assert components.read(store_with(tmp_path, content), model) is None
    assert components.read(tmp_path, Model.from_body(body({}))) is None
