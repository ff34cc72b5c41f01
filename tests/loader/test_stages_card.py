"""The model card in the published folder, in the receipt and in the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd_api.card import CARD_MAX_BYTES, Card
from sd_api.names import CARD_FILE, PICTURE_FILE, RECEIPT_FILE
from sd_api.wire import Receipt
from sd_loader import stages
from sd_loader.picture import PictureError
from tests.support.store.madeup import Parts, loaded, removed, request
from tests.support.store.volumes import FILES, MODEL_ID, NAMESAKE, OWNER, tree

CARD = Card(title="Pony", trigger_words=tuple(f"{n:3} {'é' * 100}" for n in range(20)))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Fake parts with a card that is too long for a result."""
    parts = Parts.installed(monkeypatch)
    parts.card = CARD
    return parts


def card_in(root: Path) -> Card:
    """Return the whole card in the published folder."""
    return Card.decode((root / MODEL_ID / CARD_FILE).read_bytes())


@pytest.mark.usefixtures("parts")
def test_the_whole_card_is_published_and_a_short_one_reported(tmp_path: Path) -> None:
    """The receipt lists the card's file, and keeps the short card for a later Pod's result."""
    result = loaded(tmp_path)
    assert card_in(tmp_path) == CARD
    assert result.artifact is not None
    short = result.artifact.card
    assert short is not None
    assert short == CARD.short()
    assert short.nbytes <= CARD_MAX_BYTES
    receipt = Receipt.decode((tmp_path / MODEL_ID / RECEIPT_FILE).read_bytes())
    assert receipt is not None
    assert receipt.files[CARD_FILE].size == (tmp_path / MODEL_ID / CARD_FILE).stat().st_size
    assert loaded(tmp_path, pod="pod-2") == result


def test_the_card_is_not_part_of_the_digest(parts: Parts, tmp_path: Path) -> None:
    """The same weights have the same digest, size and number of files with any card."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = loaded(tmp_path / "one").artifact
    parts.card = Card()
    two = loaded(tmp_path / "two").artifact
    assert one is not None
    assert two is not None
    assert one.model_copy(update={"card": None}) == two
    assert two.files == len(FILES)
    assert not (tmp_path / "two" / MODEL_ID / CARD_FILE).exists()


def test_an_adopted_version_keeps_its_card(parts: Parts, tmp_path: Path) -> None:
    """The source is not requested again."""
    first = loaded(tmp_path)
    removed(tmp_path, OWNER, retain=True)
    parts.fetch_error = AssertionError("fetched again")
    again = loaded(tmp_path, request(NAMESAKE))
    assert again.artifact is not None
    assert first.artifact is not None
    assert again.artifact.card == first.artifact.card
    assert card_in(tmp_path) == CARD


def test_the_picture_of_the_source_is_published_beside_the_model(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture does not count as a file of the model. A rerun and an adoption report it, too."""
    monkeypatch.setattr(stages, "published_picture", lambda content: b"encoded " + content)
    parts.picture = b"picture"
    result = loaded(tmp_path)
    assert result.picture
    assert not result.preview
    assert (tmp_path / MODEL_ID / PICTURE_FILE).read_bytes() == b"encoded picture"
    assert loaded(tmp_path, pod="pod-2") == result
    removed(tmp_path, OWNER, retain=True)
    assert loaded(tmp_path, request(NAMESAKE)).picture
    assert result.artifact is not None
    assert result.artifact.files == len(FILES)


def test_a_picture_that_cannot_be_decoded_is_a_warning(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is published without the picture."""

    def fail(_: bytes) -> bytes:
        raise PictureError("it has 9x9 pixels")

    monkeypatch.setattr(stages, "published_picture", fail)
    parts.picture = b"picture"
    result = loaded(tmp_path)
    assert not result.picture
    assert result.message == "one; two; the source's picture is not kept: it has 9x9 pixels"


def test_the_card_shows_the_published_prompt_token(parts: Parts, tmp_path: Path) -> None:
    """The conversion decides the token, because the file's own word may not work in prompts."""
    parts.card, parts.word = Card(word="own", author="someone"), "<m>"
    loaded(tmp_path)
    assert card_in(tmp_path) == Card(word="<m>", author="someone")


def test_an_attempt_after_a_crash_writes_the_card(parts: Parts, tmp_path: Path) -> None:
    """The next attempt writes the card again."""
    parts.convert_error = RuntimeError("crash")
    with pytest.raises(RuntimeError):
        loaded(tmp_path)
    parts.convert_error = None
    loaded(tmp_path)
    assert CARD_FILE in tree(tmp_path / MODEL_ID)
