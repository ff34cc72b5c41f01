"""The card of a Hub repo: what the front matter of its README.md says."""

from __future__ import annotations

import pytest

from sd_api.card import Card
from sd_api.sites.hub_card import card_of_repo

PLACE = {"title": "style", "author": "org", "page": "https://huggingface.co/org/style"}


@pytest.mark.parametrize(
    ("front_matter", "fields"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param(
            {
                "license": "openrail++",
                "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
                "instance_prompt": "a photo of sks dog",
                "inference": {"parameters": {"num_inference_steps": 28, "guidance_scale": 3.5}},
                "tags": ["lora"],
                "widget": [{"text": "a dog", "output": {"url": "dog.png"}}],
            },
            {
                "license": "openrail++",
                "based_on": "stabilityai/stable-diffusion-xl-base-1.0",
                "trigger_words": ("a photo of sks dog",),
                "recommended": "steps 28, guidance 3.5",
            },
            id="as training scripts write it",
        ),
        pytest.param(
            {"license": "other", "license_name": "flux-1-dev-non-commercial-license"},
            {"license": "flux-1-dev-non-commercial-license"},
            id="a licence with a name of its own",
        ),
        pytest.param({"license": "other"}, {"license": "other"}, id="an unnamed licence"),
        pytest.param(
            {"license": ["mit", "x"], "base_model": ["a/b", "c/d"]},
            {"license": "mit", "based_on": "a/b"},
            id="lists",
        ),
        pytest.param(
            {
                "license": {"x": 1},
                "base_model": [7, None, []],
                "instance_prompt": 7,
                "inference": "x",
            },
            {},
            id="other types",
        ),
        pytest.param(
            {"inference": {"parameters": {"num_inference_steps": "<b>", "guidance_scale": True}}},
            {},
            id="settings that are not numbers",
        ),
        pytest.param({"license": "\x1b\u202e\n"}, {}, id="nothing printable"),
    ],
)
def test_a_card_has_the_values_of_the_front_matter(
    front_matter: dict[str, object], fields: dict[str, object]
) -> None:
    """Title, author and page are those of the repo."""
    card = card_of_repo("org/style", "https://huggingface.co", front_matter)
    assert card == Card.model_validate({**PLACE, **fields})


def test_the_page_has_no_login() -> None:
    """The page of the card has no login, which a mirror's endpoint may contain."""
    card = card_of_repo("org/style", "https://user:password@mirror.example.com/hub/", {})
    assert card.page == "https://mirror.example.com/hub/org/style"


def test_a_repo_without_an_author_has_none() -> None:
    """The card of a repo without an owner in its name, such as an old one, has no author."""
    assert card_of_repo("gpt2", "https://huggingface.co", {}).author is None
