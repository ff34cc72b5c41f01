"""What `sd-loader inspect` shows of a file and of a published model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd_api.card import Card
from sd_api.names import CARD_FILE
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.inspect import inspect, inspect_published
from tests.support.loader.loadercli import safetensors_bytes
from tests.support.store.madeup import Parts, loaded
from tests.support.store.volumes import FILES, MODEL_ID, refused

CARD = Card(title="Pony", trigger_words=tuple(f"word {n} {'é' * 90}" for n in range(20)))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a published model with a long card."""
    Parts.installed(monkeypatch).card = CARD
    loaded(tmp_path)
    return tmp_path / MODEL_ID


def test_a_published_model_shows_its_whole_card(model: Path) -> None:
    """The result and the status have only a short card."""
    found = inspect_published(model)
    assert found.card == CARD
    assert found.files == len(FILES)
    assert found.base_model == "sd-1"
    assert json.loads(found.to_json())["card"]["title"] == "Pony"
    assert "\ntitle:         Pony\n" in found.to_text()


@pytest.mark.parametrize("content", [b"", b"[" * 5000, b"x" * (1 << 20)])
def test_an_altered_card_is_not_shown(model: Path, content: bytes) -> None:
    """The short card of the receipt is shown instead."""
    (model / CARD_FILE).write_bytes(content)
    assert inspect_published(model).card == CARD.short()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    """The message names what the command accepts."""
    with refused(Reason.NOT_A_MODEL, "give a model file, or the folder of a published model"):
        inspect_published(tmp_path)


def test_file_that_does_not_exist_has_a_remedy_of_its_own(tmp_path: Path) -> None:
    """The remedy of a load names options that `inspect` does not have."""
    with pytest.raises(LoaderError) as caught:
        inspect(tmp_path / "none.ckpt")
    assert caught.value.remedy == "Give the path of a file that exists and that you may read."


def test_an_embedding_shows_its_word_and_its_author(tmp_path: Path) -> None:
    """The word is the prompt token that a load would publish."""
    path = tmp_path / "embedding.safetensors"
    path.write_bytes(safetensors_bytes({"<cat>": (2, 768)}, {"modelspec.author": "someone"}))
    found = inspect(path)
    assert found.card == Card(word="<cat>", author="someone")
    assert "\nword:       <cat>\n" in f"{found.to_text()}\n"
