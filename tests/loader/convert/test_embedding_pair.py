"""An SDXL embedding may have two files, one for each text encoder."""

from __future__ import annotations

import pytest
from transformers import CLIPTextModelWithProjection

from sd_api.reasons import Reason
from sd_api.wire import Source
from sd_loader.convert.plan.embedding import FIRST_FILE, SECOND_FILE, TOKEN_FILE
from sd_loader.convert.run import convert
from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from tests.support.models.conversions import conversion
from tests.support.models.embeddings import assert_same, opened, save, vectors

UNSUPPORTED, CONTRADICTS = Reason.UNSUPPORTED_FORMAT, Reason.CONVERSION_FAILED
SECOND_WIDTH = 1280


def converted_repo(folder, halves, **fields):
    """Convert a repo of these files into the folder `out`. Return the result."""
    for name, content in halves.items():
        save(folder / "source" / "repo" / name, content)
    (folder / "out").mkdir()
    fetched = Fetched(kind="repo", path="repo", source=Source())
    options = conversion(model_type="embeddings", **fields)
    return convert(fetched, folder / "source", options, folder / "out", lambda _: None)


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_sdxl_embedding_in_two_files_is_opened_like_its_files(tmp_path, suffix):
    """Diffusers reads the same vectors from the folder as from the two files of the repo."""
    names = f"learned_embeds.{suffix}", f"learned_embeds_2.{suffix}"
    halves = {"<cat-toy>": vectors(768)}, {"<cat-toy>": vectors(SECOND_WIDTH, seed=1)}
    converted = converted_repo(tmp_path, dict(zip(names, halves, strict=True)))

    assert converted.files.keys() == {FIRST_FILE, SECOND_FILE, TOKEN_FILE}
    assert (converted.base_model, converted.warnings) == ("sdxl", ())
    out, repo = tmp_path / "out", tmp_path / "source" / "repo"
    assert (out / TOKEN_FILE).read_text() == "<cat-toy>"
    assert_same(opened(out, 768), opened(repo, 768, weight_name=names[0]))
    second = CLIPTextModelWithProjection
    assert_same(
        opened(out, SECOND_WIDTH, second, weight_name=SECOND_FILE),
        opened(repo, SECOND_WIDTH, second, weight_name=names[1]),
    )


@pytest.mark.parametrize(
    ("first", "second", "reason", "message"),
    [
        ({"<a>": vectors(768)}, {"<b>": vectors(1280)}, CONTRADICTS, "two embeddings: <a> and <b>"),
        ({"<a>": vectors(1280)}, {"<a>": vectors(768)}, CONTRADICTS, "should be equally many"),
        ({"<a>": vectors(768)}, {"<a>": vectors(1280, 3)}, CONTRADICTS, "should be equally many"),
        (
            {"clip_l": vectors(768), "clip_g": vectors(1280)},
            {"<a>": vectors(1280)},
            UNSUPPORTED,
            "a whole embedding of SDXL; link to that file",
        ),
    ],
    ids=["names", "order", "numbers", "whole"],
)
def test_two_files_that_do_not_belong_together_are_refused(
    tmp_path, first, second, reason, message
):
    """The error has this reason and message, and nothing is written."""
    files = {"learned_embeds.safetensors": first, "learned_embeds_2.safetensors": second}
    with pytest.raises(LoaderError, match=message) as caught:
        converted_repo(tmp_path, files)
    assert caught.value.reason is reason
    assert not list((tmp_path / "out").iterdir())
