"""A default token for Civitai opens files, and private models only if the setting allows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.tiny import write_checkpoint
from sd_api.default_credentials import DefaultSecret, file_of
from sd_loader.settings import Settings
from tests.support.loader import fetches
from tests.support.models.conversions import load_request
from tests.support.models.lorashapes import LORA

PAGE = "https://civitai.com/models/7"
TOKEN = "s3cret"


@pytest.fixture
def lora(civitai: FakeCivitai, tmp_path: Path) -> None:
    """A model of Civitai whose download needs a token."""
    path = tmp_path / "lora"
    write_checkpoint(path, LORA)
    civitai.token = TOKEN
    version = Version(71, [File(700, path)], early_access_ends="2099-01-02T00:00:00.000Z")
    civitai.add(Model(7, "LORA", [version]))


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("for_private", [False, True])
def test_api_gets_the_token_only_if_private_models_are_allowed(
    civitai: FakeCivitai, settings: Settings, into: Path, tmp_path: Path, for_private: bool
) -> None:
    """Without a token, the API shows only public models. The download always gets the token."""
    kept = {civitai.host: DefaultSecret("civitai-token", for_private)}
    folder = tmp_path / "defaults"
    folder.mkdir()
    (folder / file_of(civitai.host, "token")).write_text(TOKEN)
    settings = replace(settings, default_credentials=kept, default_credentials_dir=folder)
    fetches.fetch(load_request(url=PAGE, model_type=None), settings, into)
    sent = {one.path: one.headers.get("authorization") for one in civitai.requests}
    assert sent["/api/download/models/71"] == f"Bearer {TOKEN}"
    api = f"Bearer {TOKEN}" if for_private else None
    assert {sent["/api/v1/models/7"], sent["/api/v1/model-versions/71"]} == {api}


def test_nothing_that_is_staged_quotes_a_token(
    civitai: FakeCivitai, settings: Settings, into: Path, tmp_path: Path
) -> None:
    """Card, warnings and file name come from the server, which has received the token."""
    token = "c1vitai-s3cret-token"
    path = tmp_path / "lora"
    write_checkpoint(path, LORA)
    files = [File(700, path, name=f"a {token}.safetensors"), File(701, path, size=token)]
    version = Version(71, files, trained_words=(f"cat {token}",), base_model=token)
    civitai.add(Model(7, "LORA", [version], name=f"x {token}", creator=token))
    fetches.secret(settings, token, civitai.host)
    fetched = fetches.fetch(load_request(url=PAGE, credentials=True), settings, into)
    assert fetched.card.trigger_words == ("cat …",)
    assert fetched.source.file is None
    assert "of 2 files" in fetched.warnings[0]
    assert token not in fetched.model_dump_json()
