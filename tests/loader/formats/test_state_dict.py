"""The weights of a pickle are found under the keys and names that training programs use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.pickle_objects import Storage, View
from sd_loader.formats.state_dict import split
from sd_loader.tensors import Dtype

WEIGHT = View(Storage(Dtype.F32, "0", 4), Dtype.F32, 0, (4,), (1,))
NUMBER = View(Storage(Dtype.F32, "1", 1), Dtype.F32, 0, (), ())
WEIGHTS = {"a.weight": WEIGHT, "b.weight": WEIGHT}
WRAPPED = [
    pytest.param({"state_dict": WEIGHTS, "epoch": 3}, id="Lightning"),
    pytest.param({"model": WEIGHTS, "optimizer": {"state": {0: {"step": WEIGHT}}}}, id="model"),
    pytest.param({"module": WEIGHTS, "lr_scheduler": {"last": 1}}, id="DeepSpeed"),
    pytest.param({"model_state_dict": WEIGHTS, "loss": NUMBER}, id="beside a number"),
    pytest.param({"state_dict": {"model": WEIGHTS}}, id="twice"),
    pytest.param({"model": WEIGHTS, "model_ema": {"a.weight": 1}}, id="beside averages"),
    pytest.param({"ema": WEIGHTS}, id="averages alone"),
    pytest.param({"my_network": WEIGHTS, "step": 5}, id="an unknown key"),
    pytest.param({"state_dict": {}, "model": WEIGHTS}, id="an empty state_dict"),
    pytest.param(WEIGHTS | {0: WEIGHT, 1: {"x": WEIGHT}}, id="beside numbers"),
]


@pytest.mark.parametrize("content", WRAPPED)
def test_weights_under_a_key_are_found(content: dict[str, Any]) -> None:
    """Only the weights are found; the training program's own state is left out."""
    assert split(content)[0] == WEIGHTS


def test_values_of_all_levels_are_metadata() -> None:
    """Text and numbers beside the weights, and beside their dictionary, become metadata."""
    _, metadata = split({"epoch": 3, "model": {**WEIGHTS, "name": "x", 5: 6}})
    assert metadata == {"epoch": "3", "name": "x"}


def test_weights_in_several_dictionaries_are_refused() -> None:
    """The message names them. Only one of them could be the model."""
    content = {"unet": WEIGHTS, "text_encoder": WEIGHTS, "optimizer": {}}
    with pytest.raises(LoaderError) as caught:
        split(content)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == (
        "the weights lie under text_encoder, unet; a model is read if its weights lie together,"
        " such as under state_dict, model_state_dict, model, module"
    )


def test_single_tensor_is_a_nameless_embedding() -> None:
    """A pickle that is only a tensor gives the vectors of one word, under the name `*`."""
    assert split(WEIGHT) == ({"*": WEIGHT}, {})


def test_layers_of_a_hypernetwork_are_found_by_their_widths() -> None:
    """Names of tensors begin with the width and number of the layer, in the order of the file."""
    half = {"linear.0.weight": WEIGHT}
    names = [f"{width}.{number}.linear.0.weight" for width in (768, 320) for number in (0, 1)]
    content = {768: (half, half), 320: (half, half), "step": 1, "layer_structure": [1, 2, 1]}
    assert [*split(content)[0]] == names


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, {"model": {"model": {"x": 1}}}, {1: 2}]
)
def test_content_without_tensors_is_refused(content: dict[str, Any]) -> None:
    """The message says that the pickle holds no tensors."""
    with pytest.raises(LoaderError, match="the pickle holds no tensors"):
        split(content)


def test_dictionary_that_many_keys_share_is_searched_once() -> None:
    """The pickle is refused in less than 2 s although 50,000 keys lead to one large dictionary."""
    shared: dict[Any, Any] = {f"{number}": number for number in range(50_000)}
    shared |= {"model": shared}
    content: dict[Any, Any] = {f"{number}": shared for number in range(50_000)}
    content |= {number: [shared] for number in range(9)}
    start = time.process_time()
    with pytest.raises(LoaderError, match="the pickle holds no tensors"):
        split(content)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "state_dict."])
def test_prefix_of_every_name_is_left_out(tmp_path: Path, container: str, prefix: str) -> None:
    """The names lack the prefix that DistributedDataParallel or torch.compile, say, adds to all."""
    tensors = {f"{prefix}{name}": torch.ones(2) for name in WEIGHTS}
    path = tmp_path / "model"
    if container == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"module": tensors}, path, _use_new_zipfile_serialization=container == "zip")
    with open_tensor_file(path) as file:
        assert file.tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("names", [["a", "module.b"], ["module.cat"], ["modules.a", "modules.b"]])
def test_other_names_are_kept(tmp_path: Path, names: list[str]) -> None:
    """Names stay as they are if not all of them have the prefix, as with words of embeddings."""
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model")
    with open_tensor_file(tmp_path / "model") as file:
        assert sorted(file.tensors) == names
