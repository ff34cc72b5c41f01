"""The card of a file: what people wrote into its metadata, and what training programs recorded.

The shapes are those of sd-scripts (`train_network.py`: ss_tag_frequency counts the tags of each
folder of images, ss_resolution is the text of a tuple or a list) and of its `sai_model_spec.py`.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_api.card import TEXT_MAX, TRIGGER_WORDS_MAX, Card
from sd_loader.card import card_of_metadata


def tags(**folders: object) -> dict[str, str]:
    """Return metadata that counts the tags in each folder of training images."""
    return {"ss_tag_frequency": json.dumps(folders)}


@pytest.mark.parametrize(
    ("metadata", "card"),
    [
        pytest.param({}, Card(), id="no metadata"),
        pytest.param(
            {
                "modelspec.title": "Fish style",
                "modelspec.author": "someone",
                "modelspec.license": "CC-BY-4.0",
                "modelspec.resolution": "1024x1024",
                "modelspec.trigger_phrase": "fishy, scales",
                "modelspec.usage_hint": "weight 0.8",
            },
            Card(
                title="Fish style",
                author="someone",
                license="CC-BY-4.0",
                resolution="1024x1024",
                trigger_words=("fishy, scales",),
                recommended="weight 0.8",
            ),
            id="modelspec",
        ),
        pytest.param(
            {
                "ss_output_name": "fish_v2",
                "ss_sd_model_name": "ponyDiffusionV6XL_v6.safetensors",
                "ss_base_model_version": "sdxl_base_v1-0",
                "ss_resolution": "(1024, 768)",
                **tags(**{"10_fish": {"fishy": 20, "water": 7, "blue": 3}}),
            },
            Card(
                title="fish_v2",
                based_on="Pony",
                resolution="1024x768",
                trigger_words=("fishy",),
            ),
            id="what sd-scripts recorded",
        ),
        pytest.param(
            {"modelspec.title": "Fish", "ss_output_name": "last", "ss_resolution": "512"},
            Card(title="Fish", resolution="512x512"),
            id="what people wrote wins",
        ),
    ],
)
def test_a_card_has_the_values_of_the_metadata(metadata: dict[str, str], card: Card) -> None:
    """Other fields stay empty."""
    assert card_of_metadata(metadata) == card


@pytest.mark.parametrize(
    ("metadata", "based_on"),
    [
        pytest.param({"ss_base_model_version": "sd_v1"}, "SD 1", id="a version"),
        pytest.param({"ss_base_model_version": "moon_v7"}, "moon_v7", id="an unknown version"),
        pytest.param(
            {"ss_sd_model_name": "/home/jo/Illustrious-XL.ckpt"}, "Illustrious", id="path"
        ),
        pytest.param({"ss_sd_model_name": "C:\\models\\my mix.ckpt"}, "my mix", id="Windows path"),
        pytest.param({"ss_sd_model_name": "org/base-model"}, "base-model", id="a repo"),
        pytest.param({"sd_checkpoint_name": "anything"}, "anything", id="textual inversion"),
        pytest.param({"ss_sd_model_name": "/home/jo/"}, None, id="a folder"),
    ],
)
def test_the_base_model_has_its_trade_name(metadata: dict[str, str], based_on: str | None) -> None:
    """Folders of the machine that trained the model are not shown."""
    assert card_of_metadata(metadata).based_on == based_on


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        pytest.param(
            tags(a={"one": 9, "two": 9, "three": 1}, b={"four": 2, "one": 2}),
            ("one", "two", "four"),
            id="the most frequent tags of each folder",
        ),
        pytest.param(tags(a={f"caption {n}": 1 for n in range(9)}), (), id="captions"),
        pytest.param(tags(a={"x": "9", "y": None, "z": True, "w": 1.5}), (), id="not counts"),
        pytest.param(tags(a=["x"], b="x", c=None), (), id="not counted folders"),
        pytest.param({"ss_tag_frequency": "[" * 100_000}, (), id="nested"),
        pytest.param({"ss_tag_frequency": '{"a": {"x": 1}'}, (), id="cut off"),
        pytest.param(
            tags(**{str(n): {f"w{n}": 1} for n in range(50)}),
            tuple(f"w{n}" for n in range(TRIGGER_WORDS_MAX)),
            id="many folders",
        ),
        pytest.param(tags(a={"x" * 5000: 1}), ("x" * (TEXT_MAX - 1) + "…",), id="a long tag"),
    ],
)
def test_trigger_words_are_the_tags_of_nearly_all_images(
    metadata: dict[str, str], words: tuple[str, ...]
) -> None:
    """A trigger word is in nearly every caption of its folder."""
    assert card_of_metadata(metadata).trigger_words == words


@pytest.mark.parametrize(
    "resolution", ["", "1024", "x", "1x1", "9999999x9", "1024x1024x1024", "१०२४", "1" * 5000]
)
def test_a_resolution_has_two_sides(resolution: str) -> None:
    """A single number means a square, and any other text is left out."""
    found = card_of_metadata({"modelspec.resolution": resolution}).resolution
    assert found == ("1024x1024" if resolution == "1024" else None)


NAMES = ("modelspec.title", "modelspec.trigger_phrase", "ss_output_name", "ss_sd_model_name")


@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(NAMES), st.text('a \x1b\u202e\n"<\ud7ff🦊/', max_size=400)))
def test_any_metadata_gives_a_valid_card(metadata: dict[str, str]) -> None:
    """Control and bidi characters are removed, and long texts are cut."""
    card = card_of_metadata(metadata)
    assert Card.decode(card.encode().encode()) == card
    assert "\x1b" not in card.encode()
    assert "\u202e" not in card.encode()
