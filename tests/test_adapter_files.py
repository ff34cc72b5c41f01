"""Which file of a repo is meant when the repo is named alone."""

from __future__ import annotations

import pytest

from sd_api.reasons import Reason
from sd_api.spec import ModelType
from sd_loader.errors import LoaderError
from sd_loader.source.adapter_files import choose_adapter_file

LORA, EMBEDDINGS = ModelType.LORA, ModelType.EMBEDDINGS
USUAL = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("names", "model_type", "chosen"),
    [
        pytest.param(["README.md", "a.safetensors", USUAL], LORA, USUAL, id="usual name"),
        pytest.param(
            ["x.safetensors", "pytorch_lora_weights.bin"], LORA, "x.safetensors", id="safe"
        ),
        pytest.param(
            ["x.bin", "pytorch_lora_weights.bin"], LORA, "pytorch_lora_weights.bin", id="bin"
        ),
        pytest.param(
            ["fish.safetensors", "deep/x.safetensors"], LORA, "fish.safetensors", id="root"
        ),
        pytest.param(["x.safetensors", "optimizer.safetensors"], LORA, "x.safetensors", id="state"),
        pytest.param(["x.pt", "scheduler.bin"], EMBEDDINGS, "x.pt", id="a pickle"),
        pytest.param(
            ["learned_embeds.bin", "token_identifier.txt"],
            EMBEDDINGS,
            "learned_embeds.bin",
            id="a concept",
        ),
    ],
)
def test_one_file_is_chosen(names, model_type, chosen):
    """Safetensors first, then by name; the order of the listing does not matter."""
    assert choose_adapter_file(names, model_type) == chosen
    assert choose_adapter_file(reversed(names), model_type) == chosen


@pytest.mark.parametrize(
    ("names", "model_type", "message"),
    [
        ([], LORA, "it holds nothing"),
        (["README.md"], EMBEDDINGS, "no file of the type embeddings"),
        (["a.safetensors", "b.safetensors"], LORA, "give the link of one"),
        (["learned_embeds.bin", "learned_embeds_2.bin"], EMBEDDINGS, "clip_l and clip_g"),
    ],
    ids=["empty", "nothing of the kind", "several", "two halves"],
)
def test_what_is_left_open_is_refused(names, model_type, message):
    """With what there is, and what to do."""
    with pytest.raises(LoaderError, match=message) as caught:
        choose_adapter_file(names, model_type)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_pickles_are_refused_where_safetensors_are_asked_for():
    """As for a link."""
    with pytest.raises(LoaderError) as caught:
        choose_adapter_file(["x.pt"], EMBEDDINGS, safetensors_only=True)
    assert caught.value.reason is Reason.UNSAFE_MODEL
