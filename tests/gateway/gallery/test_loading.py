"""Tests of the load form with a link and nothing else, over HTTP, on a real cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakehub import FakeHub
from tests.support.gateway import gallerymodels
from tests.support.gateway.gallerysite import Page, Site, serve
from tests.support.kube.cluster import Cluster

pytestmark = pytest.mark.cluster

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
PAGE = "https://civitai.com/models/7"


@pytest.fixture(scope="module")
def civitai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCivitai]:
    """A Civitai on which model 7 is a LoRA and all texts of model 8 are markup."""
    weights = tmp_path_factory.mktemp("weights") / "weights"
    weights.write_bytes(b"weights")
    with FakeCivitai() as civitai:
        civitai.add(Model(7, "LORA", [Version(70, [File(700, weights)])], name="Fish Style"))
        version = Version(80, [File(800, weights, name=HOSTILE)], HOSTILE, HOSTILE, [HOSTILE])
        civitai.add(Model(8, HOSTILE, [version], name=HOSTILE, creator=HOSTILE))
        yield civitai


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A Hub with the gated repo org/gated, whose card data is markup."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "model.safetensors").write_bytes(b"weights")
    with FakeHub() as hub:
        card = {"license": "javascript:alert(1)", "base_model": HOSTILE}
        hub.add_repo("org/gated", folder, gated=True, token="hf_x", card_data=card)
        yield hub


@pytest.fixture(scope="module")
def asking(
    shared_cluster: Cluster,
    civitai: FakeCivitai,
    hub: FakeHub,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """A gallery that asks these sources, with a visitor who is logged in."""
    folder: Path = tmp_path_factory.mktemp("asking")
    with serve(shared_cluster, folder, civitai_endpoint=civitai.url, hub_endpoint=hub.url) as site:
        site.login()
        yield site


def name_in(text: str) -> str:
    """Return the name in the form."""
    (name,) = re.findall(r'id="metadata-name"[^>]* value="([^"]*)"', text)
    return str(unescape(name))


def test_a_link_is_looked_up_before_it_is_loaded(shared_cluster: Cluster, asking: Site) -> None:
    """The form shows the facts and proposes a name that no model has; nothing is created."""
    gallerymodels.make(shared_cluster, "fish-style", url="org/name")
    response = asking.post("/gallery/load", {"spec.url": PAGE, "action": "look-up"})
    text = unescape(response.text)
    assert response.code == 200
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd[^>]*>([^<]+)</dd>", text))
    assert facts["Title"] == "Fish Style (v1.0)"
    assert (facts["Type"], facts["Base model"], facts["Size"]) == ("LoRA", "SD 1.5", "7 B")
    assert name_in(text) == "fish-style-2"
    buttons = re.findall(r'name="action" value="([^"]+)"', text)
    assert buttons == ["apply", "look-up", "preview"], "Enter presses the first one"
    assert "name: fish-style-2" in text, "the YAML has it as well"
    assert "would be rejected" not in text
    assert not shared_cluster.exists("sdm", "fish-style-2")


def test_a_link_is_enough_to_load_a_model(shared_cluster: Cluster, asking: Site) -> None:
    """The model gets its name from the title; a second submission creates no second model."""
    form = {"spec.url": "civitai:7@70", "metadata.name": "", "action": "apply"}
    shared_cluster.kubectl("delete", "sdm", "--ignore-not-found", "fish-style")
    response = asking.post("/gallery/load", form)
    assert (response.code, response.location) == (303, "/gallery/models/fish-style")
    assert shared_cluster.get("sdm", "fish-style")["spec"]["url"] == "civitai:7@70"
    again = asking.post("/gallery/load", form)
    assert again.code == 409
    assert name_in(again.text) == "fish-style"
    assert "A model with this name already exists" in again.text
    assert "Fish Style" in again.text, "the form still shows the facts"


def test_a_proposed_name_follows_the_link_and_an_own_name_stays(asking: Site) -> None:
    """With another link, the form replaces a proposed name, but not a name that was typed in."""
    looked_up = {"spec.url": "org/other", "action": "look-up"}
    proposed = asking.post(
        "/gallery/load", looked_up | {"metadata.name": "proposal", "proposed": "proposal"}
    )
    assert name_in(proposed.text) == "other"
    own = asking.post("/gallery/load", looked_up | {"metadata.name": "mine", "proposed": "other"})
    assert name_in(own.text) == "mine"
    assert 'data-name=""' in own.text


def test_a_gated_repo_opens_the_group_with_the_secret(asking: Site) -> None:
    """The page has a note about the Secret, and its group of fields is open without JavaScript."""
    text = asking.post("/gallery/load", {"spec.url": "org/gated", "action": "look-up"}).text
    assert "This repo is gated" in text
    assert '<details open id="access">' in text
    assert 'data-opens="access"' in text


def test_only_a_look_up_and_a_load_without_a_name_ask_the_source(
    asking: Site, civitai: FakeCivitai
) -> None:
    """The gateway does not call a source for a preview, or when a link opens the form."""
    civitai.forget()
    other = "https://civitai.com/models/9"
    asking.get(f"/gallery/load?spec.url={other}&action=look-up")
    preview = asking.post("/gallery/load", {"spec.url": other})
    assert civitai.requests == []
    assert "name: civitai-9" in preview.text, "the name is made from the link"
    asking.post("/gallery/load", {"spec.url": other, "action": "look-up"})
    assert civitai.asked() == ["/api/v1/models/9"]


def test_a_failed_look_up_does_not_block_the_form(shared_cluster: Cluster, asking: Site) -> None:
    """The form says that the source does not have the model, and creates it if asked to."""
    form = {"spec.url": "https://civitai.com/models/404404"}
    looked_up = asking.post("/gallery/load", form | {"action": "look-up"})
    assert looked_up.code == 200
    assert "has no such model or file" in looked_up.text
    loaded = asking.post("/gallery/load", form | {"action": "apply"})
    assert loaded.location == "/gallery/models/civitai-404404"
    assert shared_cluster.exists("sdm", "civitai-404404")


@pytest.mark.parametrize("url", ["https://civitai.com/models/8", "org/gated"])
def test_facts_stay_inert(asking: Site, url: str) -> None:
    """Markup in an answer is shown as text, and no link leads to a script."""
    text = asking.post("/gallery/load", {"spec.url": url, "action": "look-up"}).text
    page = Page(text)
    assert "<script>alert" not in text
    assert page.handlers == []
    assert page.tags.count("script") == 4
    assert not [link for link in page.links if "javascript" in link]
    assert HOSTILE[:20] in unescape(text), "it is shown as text"


def test_look_up_needs_a_form_of_the_gallery(asking: Site, civitai: FakeCivitai) -> None:
    """Another site cannot make the gateway call a source in a visitor's name."""
    civitai.forget()
    form = {"spec.url": "https://civitai.com/models/10", "action": "look-up"}
    response = asking.post("/gallery/load", form, Origin="https://evil.example.com")
    assert response.code == 403
    assert civitai.requests == []
