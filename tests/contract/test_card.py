"""A model card is short, plain and bounded, whatever its source wrote."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sd_api.card import CARD_MAX_BYTES, TEXT_MAX, TRIGGER_WORDS_MAX, WORD_MAX, Card
from sd_api.status import StatusArtifact
from sd_api.wire import Artifact, LoadResult

TEXTS = st.text('a"\\é🦊', min_size=1, max_size=TEXT_MAX)
CARDS = st.builds(
    Card,
    title=st.none() | TEXTS,
    word=st.none() | st.text('w"🦊', min_size=1, max_size=WORD_MAX),
    license=st.none() | TEXTS,
    based_on=st.none() | TEXTS,
    author=st.none() | TEXTS,
    resolution=st.none() | st.just("1024x768"),
    page=st.none() | st.integers(0, 470).map(lambda n: f"https://models.example.com/{'p' * n}"),
    trigger_words=st.lists(TEXTS, max_size=TRIGGER_WORDS_MAX).map(tuple),
    recommended=st.none() | TEXTS,
)
FULL = Card(
    title='"' * TEXT_MAX,
    word="w" * WORD_MAX,
    license="🦊" * 60,
    based_on="Pony",
    author="someone",
    resolution="1024x1024",
    page="https://models.example.com/1",
    trigger_words=("one", "two"),
    recommended="steps 28",
)


@settings(max_examples=15)
@given(CARDS)
def test_each_card_fits_and_no_result_becomes_too_long(card: Card) -> None:
    """A shortened card has at most 900 bytes of JSON, and decoding returns the same card."""
    short = card.short()
    assert (short is None) == (card == Card())
    if short is not None:
        content = short.encode().encode()
        assert len(content) <= CARD_MAX_BYTES
        assert Card.decode(content) == short
    artifact = Artifact(digest="blake3:" + "b" * 64, size_bytes=8, files=2, card=short)
    text = LoadResult(outcome="loaded", message="\x01" * 512, artifact=artifact).encode()
    read = LoadResult.decode(text)
    assert read is not None
    assert read.artifact == artifact


def test_empty_field_is_left_out_of_the_status() -> None:
    """The status has no empty field of a card: `kubectl describe` would show it."""
    status = Card(title="Pony").model_dump(mode="json", by_alias=True, exclude_none=True)
    assert status == {"title": "Pony"}


def test_a_card_is_cut_field_by_field_in_a_fixed_order() -> None:
    """A text loses its end, a list its last items; a page is kept whole or not at all."""
    short = FULL.short()
    assert short == FULL
    tight = FULL.short(400)
    assert tight is not None
    assert tight.license is not None
    assert tight.license.endswith("🦊…")
    assert tight.page is None
    assert FULL.short(2) is None
    words = Card(trigger_words=("first", "second", "third"))
    assert words.short(len(words.encode()) - 1) == Card(trigger_words=("first", "second"))
    page = Card(page="https://models.example.com/1")
    assert page.short(len(page.encode()) - 1) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\nb\tc", "a b c", id="several lines"),
        pytest.param("\x1b[31mred\x07", "[31mred", id="terminal control"),
        pytest.param("abc\u202egpj.exe", "abcgpj.exe", id="bidi override"),
        pytest.param("\u2066x\u2069\u200b\ufeff", "x", id="bidi isolate and zero width"),
        pytest.param("<b>bold</b> [x](javascript:y)", "<b>bold</b> [x](javascript:y)", id="markup"),
        pytest.param("  Pony  Realism ", "Pony Realism", id="spaces"),
    ],
)
def test_a_text_loses_what_is_not_printable(text: str, shown: str) -> None:
    """Reading a card removes characters that are not printable, even from a forged result."""
    card = Card(title=text, trigger_words=(text,))
    assert (card.title, card.trigger_words) == (shown, (shown,))
    assert Card.decode(json.dumps({"title": text}).encode()).title == shown


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"title": "x" * (TEXT_MAX + 1)}, id="a long title"),
        pytest.param({"title": "\u202e"}, id="an empty title"),
        pytest.param({"title": 7}, id="a number"),
        pytest.param({"word": "x" * (WORD_MAX + 1)}, id="a long word"),
        pytest.param({"triggerWords": ["x"] * (TRIGGER_WORDS_MAX + 1)}, id="many words"),
        pytest.param({"triggerWords": "x"}, id="a text for words"),
        pytest.param({"resolution": "1024"}, id="one side"),
        pytest.param({"resolution": "1024x" + "9" * 6}, id="a huge side"),
        pytest.param({"page": "javascript:alert(1)"}, id="a script"),
        pytest.param({"page": "https://user:pass@example.com/"}, id="userinfo"),
        pytest.param({"page": 'https://example.com/"onclick="'}, id="a quote"),
        pytest.param({"page": "https://example.com/\u202e"}, id="bidi in a page"),
        pytest.param({"page": "//example.com/"}, id="no scheme"),
        pytest.param({"page": "https://example.com/" + "p" * 512}, id="a long page"),
    ],
)
def test_a_card_is_strict(fields: dict[str, object]) -> None:
    """Types, patterns and bounds are checked; nothing is converted."""
    with pytest.raises(ValidationError):
        Card.decode(json.dumps(fields).encode())


def test_fields_of_a_later_version_are_ignored() -> None:
    """A card with unknown fields, as a newer loader may write it, is read without them."""
    assert Card.decode(b'{"title": "Pony", "later": {"x": [1]}}') == Card(title="Pony")


def test_a_card_fills_its_gaps_from_another() -> None:
    """Fields that the first card lacks are taken from the second card."""
    first = Card(title="Pony", trigger_words=("score_9",))
    second = Card(title="other", author="someone", trigger_words=("x", "y"))
    assert first.over(second) == Card(title="Pony", author="someone", trigger_words=("score_9",))


def test_the_lines_of_a_card_name_each_field() -> None:
    """The first eight trigger words are shown, and the others are counted."""
    lines = dict(FULL.model_copy(update={"trigger_words": tuple("abcdefghij")}).lines())
    assert len(lines) == len(Card.model_fields)
    assert lines["trigger words"] == "a, b, c, d, e, f, g, h and 2 more"
    assert list(Card().lines()) == []


def test_the_status_takes_the_card_of_a_result() -> None:
    """The operator copies the card of the result without changes."""
    artifact = Artifact(digest="blake3:" + "b" * 64, size_bytes=8, files=2, card=FULL)
    own = {"path": "m", "immutable_path": "i", "claim_name": "c", "size": "8 B"}
    status = StatusArtifact(**artifact.model_dump(), **own, last_update_time="t")
    assert status.card == FULL
