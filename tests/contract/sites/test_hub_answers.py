"""The Hub API's answer about a repo is read field by field; an invalid field counts as absent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_api.sites.hub_answers import RepoAnswer, read_repo

ENDPOINT = "https://huggingface.co"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = ("id", "gated", "siblings", "cardData", "config")


def read(**answer: Any) -> RepoAnswer:
    """Read an answer about org/asked."""
    return read_repo(answer, "org/asked", ENDPOINT)


def test_a_pipeline_is_read_with_its_class_and_size() -> None:
    """Class, size and current name of a pipeline's repo are read from the Hub's answer."""
    repo = read(
        id="org/name",
        gated="auto",
        config={"diffusers": {"_class_name": "FluxPipeline"}},
        siblings=[
            {"rfilename": "model_index.json", "size": 500},
            {"rfilename": "vae/model.safetensors", "size": 1500, "lfs": {}},
        ],
        cardData={"license": "mit"},
    )
    assert (repo.repo_id, repo.card.page, repo.card.license) == (
        "org/name",
        f"{ENDPOINT}/org/name",
        "mit",
    )
    assert (repo.is_pipeline, repo.pipeline_class, repo.is_gated) == (True, "FluxPipeline", True)
    assert repo.size_bytes == 2000


@pytest.mark.parametrize("size", [None, "9", -1, True, 2**70, 1.5])
def test_a_size_is_unknown_if_one_file_has_none(size: object) -> None:
    """The repo's size is not known if the size of one file is not known."""
    files = [{"rfilename": "a", "size": 1}, {"rfilename": "b", "size": size}]
    assert read(siblings=files).size_bytes is None


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)))
def test_any_answer_is_read(answer: dict[str, Any]) -> None:
    """No answer raises an error: a field of another type counts as absent."""
    repo = read(**answer)
    assert repo.card.page is None or repo.card.page.startswith(f"{ENDPOINT}/")
    assert all(isinstance(path, str) for path in repo.files)


@pytest.mark.parametrize("name", ["<script>", "a/b/c", "javascript:alert(1)", "../..", 7, None])
def test_a_name_that_is_not_a_repo_is_not_taken(name: object) -> None:
    """A name that cannot be a repo's is not used, because it would become part of a url."""
    assert read(id=name).repo_id == "org/asked"


@pytest.mark.parametrize("name", ["<b>", "A" * 100, "", 7, ["FluxPipeline"], "Flux Pipeline"])
def test_a_class_that_is_not_a_name_is_not_taken(name: object) -> None:
    """A class name that is not an identifier is not used, because it is shown to people."""
    assert read(config={"diffusers": {"_class_name": name}}).pipeline_class is None
