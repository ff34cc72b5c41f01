"""Tests of the names that the gateway derives and proposes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.fields import DNS_NAME_PATTERN
from sd_operator.gateway import facts
from sd_operator.gateway.naming import SLUG_MAX_LENGTH, proposed_name


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (("majicMIX realistic 麦橘写实",), "majicmix-realistic"),
        (("Été à Paris v1.5",), "ete-a-paris-v1-5"),
        (("麦橘写实", "civitai-43331"), "civitai-43331"),
        (("  --  ", "<b>x</b>"), "b-x-b"),
        (("x" * 100,), "x" * SLUG_MAX_LENGTH),
        (("魚",), ""),
        ((), ""),
    ],
)
def test_a_name_is_proposed_from_the_first_text_that_gives_one(
    texts: tuple[str, ...], name: str
) -> None:
    """Accents are dropped; everything but ASCII letters and digits becomes a dash."""
    assert proposed_name(*texts) == name


@given(st.lists(st.text(max_size=60), max_size=3))
def test_a_proposed_name_is_a_valid_name(texts: list[str]) -> None:
    """Whatever a title contains, the API server accepts the name."""
    name = proposed_name(*texts)
    assert name == "" or re.search(DNS_NAME_PATTERN, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Big_Fish.safetensors", "big-fish"),
        ("model.v1.5_pruned-emaonly", "model-v1-5-pruned-emaonly"),
        ("weights", "weights"),
    ],
)
def test_a_name_is_made_from_the_whole_name_of_a_file(file: str, name: str) -> None:
    """Only a suffix such as .safetensors is dropped, not what follows the dot of a version."""
    assert facts.of_link(f"https://example.com/{file}").name == name
