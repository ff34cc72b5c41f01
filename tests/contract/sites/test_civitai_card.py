"""The card of a version on Civitai: what its API says."""

from __future__ import annotations

import pytest

from sd_api.card import TRIGGER_WORDS_MAX, Card
from sd_api.choices import Pictures
from sd_api.sites.civitai_card import card_of_civitai, picture_of
from sd_api.sites.civitai_facts import CivitaiFacts, CivitaiImage, CivitaiLicence

ENDPOINT = "https://civitai.com"
IMAGES = "https://images.example.com/"


def image(level: int | None, name: str = "a", *, is_video: bool = False) -> CivitaiImage:
    """Return an image or a video with this rating; None means that it has no rating."""
    return CivitaiImage(url=f"{IMAGES}{name}", nsfw_level=level, is_video=is_video)


@pytest.mark.parametrize(
    ("facts", "card"),
    [
        pytest.param(CivitaiFacts(version_id=2), Card(), id="nothing"),
        pytest.param(
            CivitaiFacts(
                version_id=2,
                model_id=1,
                model_name="Fish style",
                version_name="v2",
                base_model="Pony",
                trained_words=("fishy", "scales, blue"),
                creator="someone",
                licence=CivitaiLicence(no_credit=False, commercial_use=("Image", "Rent")),
            ),
            Card(
                title="Fish style (v2)",
                based_on="Pony",
                license="credit the creator; commercial use: Image, Rent",
                author="someone",
                page="https://civitai.com/models/1?modelVersionId=2",
                trigger_words=("fishy", "scales, blue"),
            ),
            id="everything",
        ),
        pytest.param(
            CivitaiFacts(version_id=2, model_name="\u202e<b>x</b>\x1b", creator="\u202e"),
            Card(title="<b>x</b>"),
            id="control characters",
        ),
        pytest.param(
            CivitaiFacts(version_id=2, trained_words=tuple(map(str, range(60)))),
            Card(trigger_words=tuple(map(str, range(TRIGGER_WORDS_MAX)))),
            id="many words",
        ),
    ],
)
def test_a_card_has_the_values_of_civitai(facts: CivitaiFacts, card: Card) -> None:
    """If the API does not describe the model, the card has neither creator nor licence."""
    assert card_of_civitai(facts, ENDPOINT) == card


@pytest.mark.parametrize(
    ("images", "url"),
    [
        pytest.param((), None, id="none"),
        pytest.param((image(1), image(1, "b")), f"{IMAGES}a", id="the first"),
        pytest.param((image(2), image(None), image(0), image(32)), None, id="not rated as safe"),
        pytest.param((image(1, is_video=True), image(1, "b")), f"{IMAGES}b", id="a video"),
    ],
)
def test_only_a_picture_that_is_rated_as_safe_is_taken(
    images: tuple[CivitaiImage, ...], url: str | None
) -> None:
    """A picture without a rating counts as not safe."""
    assert picture_of(CivitaiFacts(version_id=2, images=images), Pictures.SAFE) == url


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        pytest.param(Pictures.SAFE, f"{IMAGES}c", id="safe"),
        pytest.param(Pictures.ALL, f"{IMAGES}b", id="all"),
        pytest.param(Pictures.NONE, None, id="none"),
    ],
)
def test_the_setting_decides_which_picture_is_taken(allowed: Pictures, url: str | None) -> None:
    """The setting `pictures` allows safe pictures, all pictures or none. No video is taken."""
    images = (image(1, "a", is_video=True), image(None, "b"), image(1, "c"))
    assert picture_of(CivitaiFacts(version_id=2, images=images), allowed) == url


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        pytest.param(CivitaiLicence(), None, id="unknown"),
        pytest.param(CivitaiLicence(no_credit=True, derivatives=True), None, id="no demands"),
        pytest.param(CivitaiLicence(commercial_use=()), "no commercial use", id="no use"),
        pytest.param(CivitaiLicence(commercial_use=("None",)), "no commercial use", id="None"),
        pytest.param(
            CivitaiLicence(derivatives=False, different_licence=False),
            "no merges; merges under the same permissions",
            id="merges",
        ),
    ],
)
def test_the_card_states_the_licence_in_words(licence: CivitaiLicence, words: str | None) -> None:
    """The licence names what the creator demands or forbids."""
    card = card_of_civitai(CivitaiFacts(version_id=2, licence=licence), ENDPOINT)
    assert card.license == words


def test_the_page_of_a_mirror_has_no_login() -> None:
    """The page of the card has no login, which a mirror's endpoint may contain."""
    facts = CivitaiFacts(version_id=2, model_id=1)
    card = card_of_civitai(facts, "https://user:password@mirror.example.com/civitai")
    assert card.page == "https://mirror.example.com/civitai/models/1?modelVersionId=2"
