"""Tests of files that a model needs besides its source, and of the token of each request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.choices import BaseModelName
from sd_api.reasons import Reason
from sd_loader import supplies
from sd_loader.convert.plan.needs import Needs
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings
from tests.support.loader.fetches import fetch, secret
from tests.support.loader.loadercli import safetensors_bytes
from tests.support.models.conversions import load_request
from tests.support.models.modelindex import INDEX

BODY = safetensors_bytes({"layer.weight": (8, 8)})
CONFIGS = {"model_index.json": "{}", "vae/config.json": "{}", "tokenizer/spiece.model": "words"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the repo of a pipeline."""
    for name, content in {**CONFIGS, "vae/x.safetensors": "w", "x.index.json": "{}"}.items():
        path = tmp_path / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with FakeHub() as hub:
        hub.add_repo("org/pipeline", tmp_path / "repo")
        yield hub


def test_missing_file_whose_path_looks_like_a_link_is_explained(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is taken for a link. Its host does not exist either, so the message says why."""
    monkeypatch.chdir(tmp_path)
    url = "127.0.0.1.invalid/models/x.ckpt"
    with pytest.raises(LoaderError, match="was taken for a link, because it is not a file"):
        fetch(load_request(url=url), settings, tmp_path / "into", allow_local=True)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file that needs configs from a repo to be converted."""
    monkeypatch.setattr(supplies, "needs", lambda *_: Needs(config_repo="org/pipeline"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(BODY)
    return path


def test_configs_are_fetched_without_another_hosts_token(
    hub: FakeHub, settings: Settings, into: Path, model: Path
) -> None:
    """The token is only for the model's host. The configs are public."""
    secret(settings, host="models.example.com")
    request = load_request(url=str(model), credentials=True)
    fetch(request, settings, into, allow_local=True)
    folder = into / "configs"
    configs = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".note"
    }
    assert configs == CONFIGS
    assert hub.requests
    assert all("authorization" not in received.headers for received in hub.requests)


def test_failed_config_fetch_names_the_repo(
    settings: Settings, hub: FakeHub, into: Path, model: Path
) -> None:
    """A user who gave a link does not know which repo the configs come from."""
    hub.repos.clear()
    with pytest.raises(LoaderError) as caught:
        fetch(load_request(url=str(model)), settings, into, allow_local=True)
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND
    assert caught.value.message.startswith("the file needs the configs of org/pipeline: ")


RENAMED = "the repo old/name is now called "


def test_renamed_repo_of_the_vae_is_reported(
    hub: FakeHub, settings: Settings, into: Path, tmp_path: Path
) -> None:
    """Another repo may take the old name, so the user should change spec.vae.url."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "vae.safetensors").write_bytes(BODY)
    hub.add_repo("org/vae", tmp_path / "vae")
    hub.renamed["old/name"] = "org/vae"
    link = hub.serve_file("/model.safetensors", BODY)
    request = load_request(url=link, model_type="custom_ckpt", vae={"url": "old/name"})
    assert fetch(request, settings, into).warnings == (f"{RENAMED}org/vae",)


def test_renamed_repo_of_the_configs_is_reported(
    hub: FakeHub, settings: Settings, into: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another repo takes the old name, later loads would get its configs."""
    monkeypatch.setattr(supplies, "needs", lambda *_: Needs(config_repo="old/name"))
    hub.renamed["old/name"] = "org/pipeline"
    fetched = fetch(load_request(url=str(model)), settings, into, allow_local=True)
    assert fetched.warnings == (f"{RENAMED}org/pipeline",)


def test_renamed_default_repo_is_reported(
    hub: FakeHub,
    settings: Settings,
    into: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The administrator should put the new name into SD_LOADER_DEFAULT_PARTS."""
    needed = Needs(base_model=BaseModelName.SD1, components=("vae",))
    monkeypatch.setattr(supplies, "needs", lambda *_: needed)
    (tmp_path / "repo" / "model_index.json").write_text(json.dumps(INDEX))
    (tmp_path / "repo" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(BODY)
    hub.renamed["old/name"] = "org/pipeline"
    settings = replace(settings, default_parts={"sd-1": "old/name"})
    fetched = fetch(load_request(url=str(model)), settings, into, allow_local=True)
    assert f"{RENAMED}org/pipeline" in fetched.warnings


def test_invalid_hub_endpoint_is_named(settings: Settings, into: Path) -> None:
    """The message names HF_ENDPOINT because no field of the spec is wrong."""
    wrong = replace(settings, hub_endpoint="hub.example.com")
    with pytest.raises(LoaderError, match=r"^the loader's setting HF_ENDPOINT: ") as caught:
        fetch(load_request(url="org/name", model_type="huggingface"), wrong, into)
    assert caught.value.reason is Reason.INVALID_SPEC
