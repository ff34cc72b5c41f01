"""The gallery over HTTP, on a real cluster: login, pages, forms, and what must stay inert."""

from __future__ import annotations

import re
from html import unescape

import pytest

from sd_api.reasons import Reason
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerymodels import HASH, failed, ready
from tests.support.gateway.gallerysite import Page, serve
from tests.support.kube.cluster import namespace_of

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"
PNG = b"\x89PNG\r\n\x1a\nrest"
HOSTILE = '"><script>alert(1)</script>{{ 7*7 }}<img src=x onerror=alert(1)>'


def test_the_list_finds_what_is_searched_for(shared_cluster, site):
    """By text, type and phase; the address says which."""
    made = gallerymodels.make(shared_cluster, "find-lora", url=LINK, modelType="lora")
    uid = made["metadata"]["uid"]
    gallerymodels.set_status(shared_cluster, "find-lora", ready(uid, "find-lora"))
    gallerymodels.make(shared_cluster, "find-vae", url=LINK, modelType="vae")
    for query, found in (
        ("q=FIND", {"find-lora", "find-vae"}),
        ("q=find&type=vae", {"find-vae"}),
        ("q=find&phase=Ready", {"find-lora"}),
        ("q=find+sketch", set()),
    ):
        text = site.get(f"/gallery/?{query}").text
        assert set(re.findall(r'id="open-(find-\w+)"', text)) == found, query
    assert "No model is like that" in text
    answer = site.get("/gallery/?q=find&type=&phase=", HX_Request="true", HX_Trigger="filter")
    assert answer.headers["HX-Push-Url"] == "/gallery/?q=find"


def test_a_long_list_comes_in_parts(shared_cluster, site):
    """With a link to more."""
    for number in range(3):
        gallerymodels.make(shared_cluster, f"many-{number}", url=LINK)
    text = site.get("/gallery/?q=many&show=2").text
    assert len(re.findall(r'id="open-many', text)) == 2
    assert "Show more of the 3" in text
    more = unescape(re.findall(r'href="([^"]+show=4)"', text)[0])
    assert len(re.findall(r'id="open-many', site.get(more).text)) == 3


def test_an_empty_gallery_says_what_to_do(backend, tmp_path):
    """Not only that there is nothing."""
    with namespace_of(backend, tmp_path) as empty, serve(empty, tmp_path) as fresh:
        fresh.login()
        text = fresh.get("/gallery/").text
    assert "There are no models yet" in text
    assert 'href="/gallery/load"' in text


def test_a_failed_model_shows_its_remedy(shared_cluster, site):
    """As a text of its own."""
    gallerymodels.make(shared_cluster, "failed", failed(Reason.NOT_A_MODEL, "A web page"), url=LINK)
    text = unescape(site.get("/gallery/models/failed").text)
    assert f"<strong>What to do:</strong> {Reason.NOT_A_MODEL.remedy}" in text


def test_a_source_keeps_its_secrets(shared_cluster, site):
    """Token and userinfo are on no page."""
    secret = "https://ann:geheim@example.com/m.safetensors?token=geheim"
    gallerymodels.make(shared_cluster, "secretive", url=secret, webhook=secret)
    for path in ("/models/secretive", "/", "/?q=secretive", "/models/secretive/delete"):
        assert "geheim" not in site.get(f"/gallery{path}").text


def test_a_preview_is_shown_where_it_is_one(shared_cluster, site):
    """As a PNG, whatever is in it; else a picture of the type stands there."""
    uid = gallerymodels.make(shared_cluster, "painted", url=LINK)["metadata"]["uid"]
    status = ready(uid, "painted", previewPath=f".store/{uid}/{HASH}/preview.png")
    gallerymodels.set_status(shared_cluster, "painted", status)
    path = "/gallery/models/painted/preview.png"
    assert path not in site.get("/gallery/models/painted").text
    folder = shared_cluster.store / ".store" / uid / HASH
    folder.mkdir(parents=True)
    (folder / "preview.png").write_bytes(PNG.ljust(100, b"\0"))
    assert path in site.get("/gallery/models/painted").text
    assert path in site.get("/gallery/?q=painted").text
    answer = site.ask("GET", path)
    assert (answer.code, answer.headers["Content-Type"]) == (200, "image/png")
    (folder / "preview.png").write_text("<script>alert(1)</script>")
    assert site.get(path).code == 404


HOSTILE_STATUS = {
    "phase": "Failed",
    "reason": "NotAModel",
    "observedGeneration": 1,
    "conditions": [gallerymodels.condition("Stalled", "True", "NotAModel", HOSTILE)],
    "source": {"url": f"javascript:alert(1)//{HOSTILE}"},
}


def test_hostile_strings_stay_text(shared_cluster, site, tally):
    """In messages, sources, labels, Events and what was typed: as text, escaped."""
    made = gallerymodels.make(
        shared_cluster,
        "hostile",
        HOSTILE_STATUS,
        url=f"https://example.com/{HOSTILE.replace(' ', '')}",
    )
    shared_cluster.kubectl("annotate", "sdm", "hostile", f"example.com/note={HOSTILE}")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "hostile.1", "namespace": shared_cluster.namespace},
        "involvedObject": {
            "kind": "StableDiffusionModel",
            "name": "hostile",
            "namespace": shared_cluster.namespace,
            "uid": made["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": "Hostile",
        "message": HOSTILE,
        "lastTimestamp": gallerymodels.AT,
    }
    shared_cluster.apply(event)
    answers = {
        path: site.get(f"/gallery{path}")
        for path in ("/models/hostile", "/?q=hostile", "/models/hostile/delete")
    }
    answers["/?q"] = site.get(
        "/gallery/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&type=%22%3E%3Cb%3E"
    )
    answers["/load"] = site.post(
        "/gallery/load",
        {
            "metadata.name": HOSTILE,
            "spec.url": HOSTILE,
            "spec.modelType": HOSTILE,
            "action": "apply",
        },
    )
    answers["/login"] = site.get("/gallery/login?next=%22%3E%3Cscript%3E")
    for path, answer in answers.items():
        page = Page(answer.text)
        assert "<script>alert" not in answer.text, path
        assert page.handlers == [], path
        assert page.tags.count("script") == 3, path
        assert not [link for link in page.links if "javascript" in link], path
        tally("hostile pages that stayed inert")
    assert unescape(answers["/models/hostile"].text).count(HOSTILE) >= 3, "it is shown as it is"


# Forms


def test_a_model_is_loaded_by_the_form(shared_cluster, site):
    """And the page of the new model follows."""
    form = {
        "metadata.name": "by-form",
        "spec.url": LINK,
        "spec.revision": "fp16",
        "spec.webhook": "",
    }
    answer = site.post("/gallery/load", form | {"action": "apply"})
    assert (answer.code, answer.location) == (303, "/gallery/models/by-form")
    spec = shared_cluster.get("sdm", "by-form")["spec"]
    assert (spec["url"], spec["revision"]) == (LINK, "fp16")
    assert "webhook" not in spec
    again = site.post("/gallery/load", form | {"action": "apply"})
    assert again.code == 409
    assert "A model of this name is there already" in again.text


def test_trying_creates_nothing(shared_cluster, site):
    """The live preview shows the YAML, and what the API server says to it."""
    good = site.post("/gallery/load", {"metadata.name": "tried", "spec.url": LINK})
    assert good.code == 200
    assert f"url: {LINK}" in good.text
    assert "The API server would take it" in good.text
    assert not shared_cluster.exists("sdm", "tried")
    bad = site.post("/gallery/load", {"metadata.name": "tried", "spec.url": "not a link"})
    assert bad.code == 200
    assert "spec.url must be a Hugging Face repo id (ORG/NAME) or an http(s) link" in bad.text


@pytest.mark.parametrize(
    ("texts", "field", "message"),
    [
        ({"metadata.name": "bad"}, "spec-url", "spec.url is required"),
        ({"metadata.name": "Bad Name", "spec.url": LINK}, "metadata-name", "RFC 1123"),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.sha256": "abc"},
            "spec-sha256",
            "should match '^[0-9a-f]{64}$'",
        ),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.modelId": "-x"},
            "spec-modelId",
            "should match",
        ),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.priority": "high"},
            "spec-priority",
            "must be of type integer",
        ),
    ],
)
def test_complaints_stand_at_their_fields(shared_cluster, site, texts, field, message):
    """In the API server's words; what was typed is still there."""
    answer = site.post("/gallery/load", texts | {"action": "apply"})
    assert answer.code == 422
    text = unescape(answer.text)
    error = re.search(rf'id="{field}-error">([^<]+)<', text)
    assert error, text
    assert message in error[1]
    assert f'<a href="#{field}">' in text, "the summary leads there"
    assert re.search(rf'id="{field}"[^>]*aria-invalid="true"', text)
    assert all(f'value="{value}"' in text for value in texts.values())
    assert not shared_cluster.exists("sdm", "bad")


def test_the_form_takes_values_from_its_address(site):
    """So that a link can fill it in."""
    text = site.get(f"/gallery/load?spec.url={LINK}&spec.revision=bf16&spec.vae.url=org/vae").text
    assert f'value="{LINK}"' in text
    assert '<option value="bf16" selected>' in text
    assert "<details open>" in text, "where what is given would be hidden"


def test_a_form_without_end_is_refused(site):
    """As by the rest of the gateway, on a page."""
    answer = site.post("/gallery/load", {"spec.url": "x" * 100_000})
    assert answer.code == 413
    assert "That did not work" in answer.text


def test_a_model_is_deleted_once_it_was_asked_for(shared_cluster, site):
    """The very one: not another that has taken its name since."""
    first = gallerymodels.make(shared_cluster, "goner", url=LINK)["metadata"]["uid"]
    asked = site.get("/gallery/models/goner/delete")
    assert "Delete goner?" in asked.text
    assert shared_cluster.exists("sdm", "goner")
    shared_cluster.kubectl("delete", "sdm", "goner")
    gallerymodels.make(shared_cluster, "goner", url=LINK)
    for uid in (first, ""):
        site.post("/gallery/models/goner/delete", {"uid": uid})
        assert shared_cluster.exists("sdm", "goner")
    uid = re.findall(r'name="uid" value="([^"]+)"', site.get("/gallery/models/goner/delete").text)[
        0
    ]
    answer = site.post("/gallery/models/goner/delete", {"uid": uid})
    assert (answer.code, answer.location) == (303, "/gallery/")
    assert not shared_cluster.exists("sdm", "goner")
    assert site.get("/gallery/models/goner").code == 404


def test_a_model_is_loaded_again_on_request(shared_cluster, site):
    """By the annotation that the operator looks at."""
    gallerymodels.make(shared_cluster, "again", url=LINK)
    answer = site.post("/gallery/models/again/reload", {})
    assert answer.location == "/gallery/models/again"
    assert shared_cluster.get("sdm", "again")["metadata"]["annotations"]["sd-operator.dev/reload"]


@pytest.mark.parametrize("name", [".", "..", "%2e", "%00", "%F0%9F", "a%3Fb", "nothing", "A%20B"])
def test_what_is_no_name_is_no_model(shared_cluster, site, name):
    """And never the collection: its deletion would be that of every model."""
    gallerymodels.make(shared_cluster, "bystander", url=LINK)
    for path in ("", "/delete", "/preview.png"):
        assert site.get(f"/gallery/models/{name}{path}").code == 404
    for path in ("/delete", "/reload"):
        assert site.post(f"/gallery/models/{name}{path}", {"uid": ""}).code in (303, 404)
    assert site.get(f"/gallery/live?model={name}").code == 404
    assert shared_cluster.exists("sdm", "bystander")
