"""A fetch reads the model's card from what it downloads anyway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devkit.fakehub import FakeHub
from sd_api.card import Card
from sd_api.sites.civitai_facts import CivitaiFacts, CivitaiImage
from sd_loader import acquire
from sd_loader.settings import Settings
from sd_loader.source.civitai import Found
from tests.support.loader.fetches import fetch, secret
from tests.support.loader.loadercli import safetensors_bytes
from tests.support.models.conversions import load_request

LORA = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)}
METADATA = {"modelspec.title": "Fish", "modelspec.license": "MIT", "ss_output_name": "last"}
BODY = safetensors_bytes(LORA, METADATA)


def repo(hub: FakeHub, folder: Path, card_data: object) -> None:
    """Serve a repo of one LoRA."""
    folder.mkdir()
    (folder / "lora.safetensors").write_bytes(BODY)
    hub.add_repo("org/style", folder, card_data=card_data)


def give_facts(monkeypatch: pytest.MonkeyPatch, facts: CivitaiFacts) -> None:
    """Let the look-up at Civitai return these facts for each link."""
    look_up = acquire.look_up

    def look_up_at_civitai(*arguments: Any) -> Found:
        return replace(look_up(*arguments), facts=facts)

    monkeypatch.setattr(acquire, "look_up", look_up_at_civitai)


def test_the_card_of_a_link_comes_from_the_files_metadata(
    hub: FakeHub, settings: Settings, into: Path
) -> None:
    """Only the file itself is requested."""
    hub.serve_file("/fish.safetensors", BODY)
    request = load_request(url=f"{hub.url}/fish.safetensors", model_type="lora")
    fetched = fetch(request, settings, into)
    assert fetched.card == Card(title="Fish", license="MIT")
    assert {asked.path for asked in hub.requests} == {"/fish.safetensors"}


def test_the_hubs_card_comes_with_the_listing_of_the_repo(
    hub: FakeHub, settings: Settings, into: Path, tmp_path: Path
) -> None:
    """The Hub's fields come first, and the file's metadata fills the gaps. No README is read."""
    repo(hub, tmp_path / "repo", {"base_model": "org/base", "instance_prompt": "fishy"})
    fetched = fetch(load_request(url="org/style", model_type="lora"), settings, into)
    assert fetched.card == Card(
        title="style",
        author="org",
        license="MIT",
        based_on="org/base",
        trigger_words=("fishy",),
        page=f"{hub.url}/org/style",
    )
    assert not any("README" in asked.path for asked in hub.requests)


def test_values_of_civitai_come_first(
    hub: FakeHub, settings: Settings, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They replace those of the file, because people see Civitai's values on the model's page."""
    facts = CivitaiFacts(version_id=2, model_id=1, model_name="Scales", base_model="Pony")
    give_facts(monkeypatch, facts)
    link = hub.serve_file("/fish.safetensors", BODY)
    fetched = fetch(load_request(url=link, model_type="lora"), settings, into)
    page = f"{settings.civitai_endpoint}/models/1?modelVersionId=2"
    assert fetched.card == Card(title="Scales", license="MIT", based_on="Pony", page=page)


@pytest.mark.parametrize(
    ("picture", "warning"),
    [
        pytest.param({"content": b"\xff\xd8\xffpixels"}, None, id="kept as it is"),
        pytest.param({"content": b"", "status": 404}, "404", id="missing"),
        pytest.param({"content": bytes(6 << 20)}, "the limit is", id="too large"),
    ],
)
def test_a_safe_picture_is_kept_and_a_failure_is_a_warning(
    hub: FakeHub,
    settings: Settings,
    into: Path,
    monkeypatch: pytest.MonkeyPatch,
    picture: dict[str, Any],
    warning: str | None,
) -> None:
    """The bytes are kept undecoded, because this container has the token."""
    image = CivitaiImage(url=hub.serve_file("/image", **picture), nsfw_level=1)
    give_facts(monkeypatch, CivitaiFacts(version_id=2, images=(image,)))
    link = hub.serve_file("/fish.safetensors", BODY)
    fetched = fetch(load_request(url=link, model_type="lora"), settings, into)
    if warning is None:
        assert fetched.picture is not None
        assert (into / fetched.picture).read_bytes() == picture["content"]
    else:
        assert fetched.picture is None
        assert "the source's picture is not kept: " in fetched.warnings[0]
        assert warning in fetched.warnings[0]


@pytest.mark.parametrize(
    "card_data",
    [
        pytest.param({"license": {"a": [1]}, "tags": 7, "model-index": "x"}, id="wrong types"),
        pytest.param("x", id="a text", marks=pytest.mark.slow),
        pytest.param(["x"], id="a list", marks=pytest.mark.slow),
        pytest.param(7, id="a number", marks=pytest.mark.slow),
        pytest.param(
            {"license": {"a": [1]}, "tags": "x"}, id="tags as text", marks=pytest.mark.slow
        ),
        pytest.param({"tags": "x" * (5 << 20)}, id="megabytes", marks=pytest.mark.slow),
    ],
)
def test_an_odd_card_does_not_fail_the_load(
    hub: FakeHub, settings: Settings, into: Path, tmp_path: Path, card_data: object
) -> None:
    """Fields that cannot be read are left out."""
    repo(hub, tmp_path / "repo", card_data)
    fetched = fetch(load_request(url="org/style", model_type="lora"), settings, into)
    assert (fetched.card.title, fetched.card.license) == ("style", "MIT")


def test_a_card_does_not_have_the_token(
    hub: FakeHub, settings: Settings, into: Path, tmp_path: Path
) -> None:
    """A server that received the token may quote it."""
    secret(settings, token="plain-s3cret-t0ken")
    repo(
        hub,
        tmp_path / "repo",
        {"license": "plain-s3cret-t0ken", "instance_prompt": "hf_another0token"},
    )
    hub.add_repo("org/other", tmp_path / "repo", token="plain-s3cret-t0ken")
    request = load_request(url="org/style", model_type="lora", credentials=True)
    fetched = fetch(request, settings, into)
    assert (fetched.card.license, fetched.card.trigger_words) == ("…", ("hf_…",))
