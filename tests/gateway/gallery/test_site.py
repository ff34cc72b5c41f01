"""Tests of the gallery's pages and forms over HTTP, on a real cluster."""

from __future__ import annotations

import re
from html import unescape

import pytest

from sd_api.names import LABEL_MODELS
from sd_api.reasons import Reason
from sd_api.starters import STARTERS
from sd_operator.gateway.gallery.words import in_words
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerymodels import HASH, failed, ready
from tests.support.gateway.gallerysite import Page, serve
from tests.support.kube.cluster import claim_manifest, namespace_of

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"
PNG = b"\x89PNG\r\n\x1a\nrest"
PAGES = ("delete", "edit")
HOSTILE = '"><script>alert(1)</script>{{ 7*7 }}<img src=x onerror=alert(1)>'


def test_list_is_filtered_by_text_type_and_phase(shared_cluster, site):
    """The list shows the models that match the filter in the URL."""
    model = gallerymodels.make(shared_cluster, "find-lora", url=LINK, modelType="lora")
    uid = model["metadata"]["uid"]
    gallerymodels.set_status(shared_cluster, "find-lora", ready(uid, "find-lora"))
    gallerymodels.make(shared_cluster, "find-vae", url=LINK, modelType="vae")
    for query, names in (
        ("q=FIND", {"find-lora", "find-vae"}),
        ("q=find&type=vae", {"find-vae"}),
        ("q=find&phase=Ready", {"find-lora"}),
        ("q=find+sketch", set()),
    ):
        text = site.get(f"/gallery/?{query}").text
        assert set(re.findall(r'id="open-(find-\w+)"', text)) == names, query
    assert "No model matches" in text
    response = site.get("/gallery/?q=find&type=&phase=", HX_Request="true", HX_Trigger="filter")
    assert response.headers["HX-Push-Url"] == "/gallery/?q=find"


def test_long_list_is_shown_in_parts(shared_cluster, site):
    """The list shows the first models, and a link to a list with more of them."""
    for number in range(3):
        gallerymodels.make(shared_cluster, f"many-{number}", url=LINK)
    text = site.get("/gallery/?q=many&show=2").text
    assert len(re.findall(r'id="open-many', text)) == 2
    assert "Show more of the 3 models" in text
    more = unescape(re.findall(r'href="([^"]+show=4)"', text)[0])
    assert len(re.findall(r'id="open-many', site.get(more).text)) == 3


def test_empty_gallery_links_to_the_load_form(backend, tmp_path):
    """The page says that there are no models, and offers the starter catalog instead of filters."""
    with namespace_of(backend, tmp_path) as empty, serve(empty, tmp_path) as fresh:
        fresh.login()
        text = fresh.get("/gallery/").text
    assert "There are no models yet" in text
    assert 'href="/gallery/load"' in text
    offered = set(re.findall(r'name="name" value="([^"]+)"', text))
    assert offered == {starter.name for starter in STARTERS}
    assert 'id="filter"' not in text


def test_page_of_a_failed_model_shows_the_remedy(shared_cluster, site):
    """The page of a failed model shows the remedy apart from the message."""
    gallerymodels.make(shared_cluster, "failed", failed(Reason.NOT_A_MODEL, "A web page"), url=LINK)
    text = unescape(site.get("/gallery/models/failed").text)
    assert f"<strong>What to do:</strong> {in_words(Reason.NOT_A_MODEL.remedy)}" in text


def test_no_page_shows_secrets_of_a_source(shared_cluster, site):
    """Tokens and passwords in urls are left out of every page."""
    secret = "https://ann:geheim@example.com/m.safetensors?token=geheim"
    gallerymodels.make(shared_cluster, "secretive", url=secret, webhook=secret)
    for path in ("/models/secretive", "/", *(f"/models/secretive/{name}" for name in PAGES)):
        assert "geheim" not in site.get(f"/gallery{path}").text


def test_preview_is_shown_if_it_is_a_png_file(shared_cluster, site):
    """Before the file exists no page refers to it; a file that is not a PNG gives status 404."""
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
    response = site.request("GET", path)
    assert (response.code, response.headers["Content-Type"]) == (200, "image/png")
    (folder / "preview.png").write_text("<script>alert(1)</script>")
    assert site.get(path).code == 404


HOSTILE_CARD = {"title": HOSTILE, "author": HOSTILE, "triggerWords": [HOSTILE]}
HOSTILE_STATUS = {
    "phase": "Failed",
    "reason": "NotAModel",
    "observedGeneration": 1,
    "conditions": [gallerymodels.condition("Stalled", "True", "NotAModel", HOSTILE)],
    "source": {"url": f"javascript:alert(1)//{HOSTILE}"},
    "artifact": gallerymodels.artifact("hostile-uid", "hostile", card=HOSTILE_CARD),
}


def test_hostile_strings_are_escaped(shared_cluster, site, tally):
    """Markup in messages, sources, annotations, Events and submitted forms is shown as text."""
    model = gallerymodels.make(
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
            "uid": model["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": "Hostile",
        "message": HOSTILE,
        "lastTimestamp": gallerymodels.AT,
    }
    shared_cluster.apply(event)
    responses = {
        path: site.get(f"/gallery{path}")
        for path in (
            "/models/hostile",
            "/?q=hostile",
            *(f"/models/hostile/{name}" for name in PAGES),
        )
    }
    responses["/?q"] = site.get(
        "/gallery/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&type=%22%3E%3Cb%3E"
    )
    responses["/load"] = site.post(
        "/gallery/load",
        {
            "metadata.name": HOSTILE,
            "spec.url": HOSTILE,
            "spec.modelType": HOSTILE,
            "action": "apply",
        },
    )
    responses["/login"] = site.get("/gallery/login?next=%22%3E%3Cscript%3E")
    for path, response in responses.items():
        page = Page(response.text)
        assert "<script>alert" not in response.text, path
        assert page.handlers == [], path
        assert page.tags.count("script") == 4, path
        assert not [link for link in page.links if "javascript" in link], path
        tally("hostile pages that stayed inert")
    assert unescape(responses["/models/hostile"].text).count(HOSTILE) >= 6, "it is shown as text"


# Forms


def test_form_creates_a_model(shared_cluster, site):
    """The browser is redirected to the model's page; a second submission gives status 409."""
    form = {
        "metadata.name": "by-form",
        "spec.url": LINK,
        "spec.revision": "fp16",
        "spec.webhook": "",
    }
    response = site.post("/gallery/load", form | {"action": "apply"})
    assert (response.code, response.location) == (303, "/gallery/models/by-form")
    spec = shared_cluster.get("sdm", "by-form")["spec"]
    assert (spec["url"], spec["revision"]) == (LINK, "fp16")
    assert "webhook" not in spec
    again = site.post("/gallery/load", form | {"action": "apply"})
    assert again.code == 409
    assert "A model with this name already exists" in again.text


@pytest.mark.parametrize("action", ["apply", "preview"])
def test_form_with_a_pvc_that_is_not_for_models_is_rejected(shared_cluster, site, action):
    """The error is shown at the field spec.storage.claimName.

    The same form is accepted once the PVC has the label.
    """
    claim, name = f"database-{action}", f"on-database-{action}"
    shared_cluster.apply(claim_manifest(claim, for_models=False))
    form = {"metadata.name": name, "spec.url": LINK, "spec.storage.claimName": claim}
    refused = site.post("/gallery/load", form | {"action": action})
    assert refused.code == (403 if action == "apply" else 200)
    assert f"PersistentVolumeClaim {claim} may not be used for models" in refused.text
    error = f'id="spec-storage-claimName-error">PersistentVolumeClaim {claim} may not'
    assert error in refused.text
    assert not shared_cluster.exists("sdm", name)
    shared_cluster.kubectl("label", "pvc", claim, f"{LABEL_MODELS}=true")
    accepted = site.post("/gallery/load", form | {"action": action})
    assert accepted.code == (303 if action == "apply" else 200)
    assert "may not be used" not in accepted.text


def test_preview_of_the_form_creates_nothing(shared_cluster, site):
    """The preview shows the YAML, and whether the API server would accept it."""
    good = site.post("/gallery/load", {"metadata.name": "tried", "spec.url": LINK})
    assert good.code == 200
    assert f"url: {LINK}" in good.text
    assert "The API server would accept this resource" in good.text
    assert not shared_cluster.exists("sdm", "tried")
    bad = site.post("/gallery/load", {"metadata.name": "tried", "spec.url": "not a link"})
    assert bad.code == 200
    assert "Source must be a Hugging Face repo id (ORG/NAME) or an http(s) link" in bad.text


@pytest.mark.parametrize(
    ("texts", "field", "message"),
    [
        ({"metadata.name": "bad"}, "spec-url", "Source is required"),
        (
            {"metadata.name": "Bad Name", "spec.url": LINK},
            "metadata-name",
            "Name must be lower-case letters, digits, dashes and dots, with a letter or digit at",
        ),
        ({"metadata.name": "", "spec.url": ""}, "metadata-name", "Name is required"),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.webhook": "ftp://a"},
            "spec-webhook",
            "Webhook must be an http(s) URL",
        ),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.sha256": "abc"},
            "spec-sha256",
            "SHA-256 must be 64 digits of lower-case hex",
        ),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.modelId": "-x"},
            "spec-modelId",
            "Model id must be 1 to 63 letters, digits, dots, dashes and underscores",
        ),
        (
            {"metadata.name": "bad", "spec.url": LINK, "spec.priority": "high"},
            "spec-priority",
            "Priority must be a whole number",
        ),
    ],
)
def test_errors_are_shown_at_their_fields(shared_cluster, site, texts, field, message):
    """The API server's errors are in words, and the form keeps the submitted values."""
    response = site.post("/gallery/load", texts | {"action": "apply"})
    assert response.code == 422
    text = unescape(response.text)
    error = re.search(rf'id="{field}-error">([^<]+)<', text)
    assert error, text
    assert message in error[1]
    assert f'<a href="#{field}">' in text, "the summary links to the field"
    assert re.search(rf'id="{field}"[^>]*aria-invalid="true"', text)
    assert all(f'value="{value}"' in text for value in texts.values())
    assert not shared_cluster.exists("sdm", "bad")


def test_form_takes_values_from_its_url(site):
    """Fields of the form are filled in from the parameters of its URL."""
    text = site.get(f"/gallery/load?spec.url={LINK}&spec.revision=bf16&spec.vae.url=org/vae").text
    assert f'value="{LINK}"' in text
    assert '<option value="bf16" selected>' in text
    open_groups = re.findall(r'<details open id="(\w+)">', text)
    assert open_groups == ["type", "components"], "the groups with a filled field are open"


def test_too_large_form_is_rejected(site):
    """A form above the gateway's size limit gets status 413 and an HTML page."""
    response = site.post("/gallery/load", {"spec.url": "x" * 100_000})
    assert response.code == 413
    assert "Request failed" in response.text


def test_confirmed_model_is_deleted(shared_cluster, site):
    """Only the model with the confirmed uid is deleted, not a new one with the same name."""
    first = gallerymodels.make(shared_cluster, "goner", url=LINK)["metadata"]["uid"]
    question = site.get("/gallery/models/goner/delete")
    assert "Delete goner?" in question.text
    assert shared_cluster.exists("sdm", "goner")
    shared_cluster.kubectl("delete", "sdm", "goner")
    gallerymodels.make(shared_cluster, "goner", url=LINK)
    for uid in (first, ""):
        site.post("/gallery/models/goner/delete", {"uid": uid})
        assert shared_cluster.exists("sdm", "goner")
    text = site.get("/gallery/models/goner/delete").text
    uid = re.findall(r'name="uid" value="([^"]+)"', text)[0]
    response = site.post("/gallery/models/goner/delete", {"uid": uid})
    assert (response.code, response.location) == (303, "/gallery/")
    assert not shared_cluster.exists("sdm", "goner")
    assert site.get("/gallery/models/goner").code == 404


def test_reload_button_sets_the_reload_annotation(shared_cluster, site):
    """The button sets the reload annotation, and redirects the browser to the model's page."""
    gallerymodels.make(shared_cluster, "again", url=LINK)
    response = site.post("/gallery/models/again/reload", {})
    assert response.location == "/gallery/models/again"
    assert shared_cluster.get("sdm", "again")["metadata"]["annotations"]["sd-operator.dev/reload"]


@pytest.mark.parametrize("name", [".", "..", "%2e", "%00", "%F0%9F", "a%3Fb", "nothing", "A%20B"])
def test_invalid_names_give_status_404(shared_cluster, site, name):
    """An invalid name never addresses the collection, whose deletion would delete every model."""
    gallerymodels.make(shared_cluster, "bystander", url=LINK)
    for path in ("", "/edit", "/delete", "/preview.png"):
        assert site.get(f"/gallery/models/{name}{path}").code == 404
    for path in ("/delete", "/edit", "/reload", "/resume", "/retype", "/suspend"):
        assert site.post(f"/gallery/models/{name}{path}", {"uid": ""}).code in (303, 404)
    assert shared_cluster.exists("sdm", "bystander")
