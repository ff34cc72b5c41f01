"""Tests of the gallery's buttons over HTTP, with a real API server."""

from __future__ import annotations

import re
from html import unescape

import pytest

from sd_api.names import ANNOTATION_REQUESTED_BY, REQUESTED_BY_GATEWAY
from sd_api.starters import STARTERS
from tests.support.gateway import gallerymodels

pytestmark = pytest.mark.cluster

LINK = "https://example.com/model.safetensors"
SECRET = "https://ann:geheim@example.com/model.safetensors?token=geheim"


def spec_of(cluster, name: str) -> dict:
    """Return the spec of a model, as the API server has it."""
    return cluster.get("sdm", name)["spec"]


def edit_form(site, name: str) -> dict[str, str]:
    """Return the fields of the edit form as a browser would send them unchanged."""
    text = unescape(site.get(f"/gallery/models/{name}/edit").text)
    form = dict(re.findall(r'<input [^>]*name="([^"]+)" value="([^"]*)"', text))
    for select, options in re.findall(
        r'<select [^>]*name="([^"]+)"(.*?)</select>', text, re.DOTALL
    ):
        chosen = re.search(r'value="([^"]*)" selected', options)
        form[select] = chosen[1] if chosen else ""
    return form


def test_edit_changes_one_field_and_keeps_the_others(shared_cluster, site):
    """A url keeps its secret parts, which the form never shows. An outdated form is rejected."""
    gallerymodels.make(shared_cluster, "edited", url=SECRET, modelType="lora", suspend=True)
    form = edit_form(site, "edited")
    assert form["spec.modelType"] == "lora"
    assert "geheim" not in str(form)
    path = "/gallery/models/edited/edit"
    response = site.post(path, form | {"spec.revision": "fp16", "action": "apply"})
    assert (response.code, response.location) == (303, "/gallery/models/edited")
    spec = spec_of(shared_cluster, "edited")
    assert (spec["revision"], spec["url"], spec["suspend"]) == ("fp16", SECRET, True)

    late = site.post(path, form | {"spec.revision": "fp32", "action": "apply"})
    assert late.code == 409, "the form is older than the model"
    assert "Someone else changed this model" in late.text
    assert spec_of(shared_cluster, "edited")["revision"] == "fp16"


@pytest.mark.parametrize(
    ("field", "value", "marked"),
    [
        ("spec.url", LINK, True),
        ("spec.vae.url", LINK, True),
        ("spec.components.from", "org/other", True),
        ("spec.originalConfig", LINK, True),
        ("spec.gitRevision", "v2", False),
    ],
)
def test_edit_that_names_a_source_marks_the_model(shared_cluster, site, field, value, marked):
    """The mark is an annotation, which gives the model's loads fewer tokens.

    An edit of a field that names no source does not add it.
    """
    name = f"marks-{field.removeprefix('spec.').replace('.', '-').lower()}"
    gallerymodels.make(shared_cluster, name, url="org/name")
    form = edit_form(site, name) | {field: value, "action": "apply"}
    assert site.post(f"/gallery/models/{name}/edit", form).code == 303
    annotations = shared_cluster.get("sdm", name)["metadata"].get("annotations", {})
    assert (annotations.get(ANNOTATION_REQUESTED_BY) == REQUESTED_BY_GATEWAY) is marked


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spec.url", "not a link", "Source must be a Hugging Face repo id"),
        ("spec.webhook", "http://127.0.0.1/hook", "Webhook is refused"),
    ],
)
def test_refused_edit_names_the_field(shared_cluster, site, field, value, message):
    """An edit and its preview show the message about the field.

    The form keeps the text, and the model does not change.
    """
    name = field.rpartition(".")[2]
    gallerymodels.make(shared_cluster, f"refused-{name}", url=LINK)
    form = edit_form(site, f"refused-{name}") | {field: value}
    path = f"/gallery/models/refused-{name}/edit"
    for action, code in (("preview", {200}), ("apply", {400, 422})):
        response = site.post(path, form | {"action": action})
        assert response.code in code
        assert message in unescape(response.text)
        assert f'value="{value}"' in response.text
    assert spec_of(shared_cluster, f"refused-{name}")["url"] == LINK
    accepted = site.post(path, form | {field: "", "spec.url": LINK, "spec.priority": "7"})
    assert "The API server would accept this resource" in accepted.text
    assert "priority: 7" in accepted.text
    assert spec_of(shared_cluster, f"refused-{name}")["priority"] == 0


def test_model_is_suspended_resumed_and_loaded_as_another_type(shared_cluster, site):
    """Each button changes one field and leads back to the model's page."""
    gallerymodels.make(shared_cluster, "wrong-type", url=LINK)
    path = "/gallery/models/wrong-type"
    for action, form, expected in (
        ("suspend", {}, (True, None)),
        ("resume", {}, (False, None)),
        ("retype", {"modelType": "lora"}, (False, "lora")),
    ):
        response = site.post(f"{path}/{action}", form)
        assert (response.code, response.location) == (303, path)
        spec = spec_of(shared_cluster, "wrong-type")
        assert (spec.get("suspend"), spec.get("modelType")) == expected, action
    assert site.post(f"{path}/retype", {"modelType": "nonsense"}).code == 400
    assert site.get(f"{path}/suspend").code == 405, "only a form may change a model"


def test_several_models_are_deleted_with_one_confirmation(shared_cluster, site):
    """The confirmation names the models. A model that is recreated afterwards is not deleted."""
    for name in ("many-a", "many-b", "many-c"):
        policy = "Retain" if name == "many-b" else "Delete"
        gallerymodels.make(shared_cluster, name, url=LINK, deletionPolicy=policy)
    question = site.post("/gallery/delete", [("model", "many-a"), ("model", "many-b")])
    text = unescape(question.text)
    assert "Delete 2 models?" in text
    assert "many-c" not in text
    assert "the files stay, because the deletion policy is Retain" in text
    assert all(shared_cluster.exists("sdm", name) for name in ("many-a", "many-b"))
    confirmed = re.findall(r'name="confirmed" value="([^"]+)"', text)
    shared_cluster.delete("sdm", "many-b")
    shared_cluster.wait_gone("sdm", "many-b")
    gallerymodels.make(shared_cluster, "many-b", url=LINK)
    response = site.post("/gallery/delete", [("confirmed", value) for value in confirmed])
    assert (response.code, response.location) == (303, "/gallery/")
    assert not shared_cluster.exists("sdm", "many-a")
    assert shared_cluster.exists("sdm", "many-b")
    assert site.post("/gallery/delete", []).code == 400


def test_starter_model_is_loaded_by_one_click(shared_cluster, site):
    """The button creates the model; the catalog then has a link to the model's page."""
    starter = STARTERS[0]
    assert site.post("/gallery/starter", {"name": starter.name}).location == "/gallery/starter"
    assert starter.spec.items() <= spec_of(shared_cluster, starter.name).items()
    text = site.get("/gallery/starter").text
    assert f'href="/gallery/models/{starter.name}"' in text
    assert f'value="{starter.name}"' not in text
    assert site.post("/gallery/starter", {"name": "none"}).code == 404
    assert site.post("/gallery/starter", {"name": starter.name}).code == 409


@pytest.mark.parametrize(
    "path",
    ["/starter", "/delete", *(f"/models/x/{name}" for name in ("edit", "suspend", "retype"))],
)
def test_buttons_work_only_from_the_gallerys_own_pages(site, path):
    """A form from another site is rejected with status 403."""
    assert site.post(f"/gallery{path}", {}, Origin="https://evil.example.com").code == 403
