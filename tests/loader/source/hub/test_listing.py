"""The Hub's answer for a repo is read, whatever an author has written into its README.md."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_api.sites.hub_card import card_of_repo
from sd_loader.diffusers_repo.component_files import RepoFile
from sd_loader.errors import LoaderError
from sd_loader.source.hub_listing import RepoListing, read_listing

COMMIT = "0" * 40
SHA256 = "a" * 64
FILES = (
    RepoFile("model.safetensors", 7, SHA256, COMMIT),
    RepoFile("config.json", 3, None, COMMIT),
)
ANSWER: dict[str, Any] = {
    "id": "org/style",
    "sha": COMMIT,
    "siblings": [
        {
            "rfilename": "model.safetensors",
            "size": 7,
            "blobId": COMMIT,
            "lfs": {"size": 7, "sha256": SHA256, "pointerSize": 130},
        },
        {"rfilename": "config.json", "size": 3, "blobId": COMMIT},
    ],
}


def answer(front_matter: str) -> bytes:
    """Return an answer with this JSON text as the front matter."""
    return (json.dumps(ANSWER)[:-1] + f', "cardData": {front_matter}}}').encode()


@pytest.mark.parametrize(
    ("front_matter", "values"),
    [
        pytest.param('{"license": "mit"}', {"license": "mit"}, id="usual"),
        pytest.param("null", {}, id="none"),
        pytest.param('["mit"]', {}, id="a list"),
        pytest.param('{"self": 1, "tags": 7, "model-index": [{}]}', None, id="odd keys and types"),
        pytest.param('{"model-index": [{"name": "x", "results": "y"}]}', None, id="odd results"),
        pytest.param('{"license": "\\ud800"}', None, id="half a surrogate pair"),
        pytest.param('{"license": ' + "9" * 10_000 + "}", {"license": None}, id="many digits"),
        pytest.param('{"license": NaN}', None, id="not a number"),
        pytest.param("[" * 50_000 + "]" * 50_000, {}, id="deep lists"),
        pytest.param('{"a":' * 50_000 + "1" + "}" * 50_000, None, id="deep objects"),
        pytest.param(
            '{"license": "]}\\"[{", "a": ' + "[" * 2_000 + "]" * 2_000 + "}",
            None,
            id="brackets in texts",
        ),
    ],
)
def test_front_matter_never_makes_the_answer_unreadable(
    front_matter: str, values: dict[str, object] | None
) -> None:
    """Commit and files are read, and a card can be made."""
    read = read_listing(answer(front_matter))
    assert (read.name, read.commit, read.files) == ("org/style", COMMIT, FILES)
    if values is not None:
        assert read.front_matter == values
    card_of_repo("org/style", "https://huggingface.co", read.front_matter).encode()


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    """A text of the front matter may have been cut in the middle of a character."""
    read = read_listing(answer('{"license": "mit"}').replace(b"mit", b"m\xe2\x82"))
    assert read.files == FILES
    assert read.front_matter["license"] == "m\ufffd"


def test_a_deep_answer_keeps_the_other_fields_of_the_front_matter() -> None:
    """Only deeply nested values are left out."""
    deep = '{"a": ' + "[" * 5_000 + "]" * 5_000 + ', "license": "]}\\"[{"}'
    assert read_listing(answer(deep)).front_matter["license"] == ']}"[{'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FEW = settings(max_examples=settings().max_examples // 2)
"""Half of the profile's examples: the rows above have the kinds of values that matter."""


@FEW
@given(JSON)
def test_any_front_matter_is_read(front_matter: object) -> None:
    """The front matter may be any JSON value."""
    read = read_listing(answer(json.dumps(front_matter)))
    assert read.files == FILES
    card_of_repo("org/style", "https://huggingface.co", read.front_matter).encode()


@FEW
@given(st.sampled_from(["id", "sha", "siblings", "rfilename", "size", "blobId", "lfs"]), JSON)
def test_any_value_of_another_field_is_read_or_refused(key: str, value: object) -> None:
    """Reading either succeeds or raises a LoaderError."""
    whole = {**ANSWER, key: value}
    if key not in ANSWER:
        whole = {**ANSWER, "siblings": [{**ANSWER["siblings"][0], key: value}]}
    with suppress(LoaderError):
        assert isinstance(read_listing(json.dumps(whole).encode()), RepoListing)
