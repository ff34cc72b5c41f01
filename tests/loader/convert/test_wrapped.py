"""Files of training programs are loaded if they hold a known model. If not, they are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from tests.support.models.checkpoints import Checkpoint, save_safetensors, tiny_sd15
from tests.support.models.conversions import convert_file

Wrap = Callable[[Checkpoint], Any]


def prefixed(tensors: Checkpoint, prefix: str) -> Checkpoint:
    """The tensors with a prefix before each name."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


WRAPPED: list[Any] = [
    pytest.param(lambda it: {"model": it, "epoch": 1}, id="model", marks=pytest.mark.slow),
    pytest.param(lambda it: {"module": prefixed(it, "module.")}, id="DeepSpeed"),
    pytest.param(
        lambda it: {"state_dict": prefixed(it, "module.")},
        id="DistributedDataParallel",
        marks=pytest.mark.slow,
    ),
    pytest.param(lambda it: prefixed(it, "_orig_mod."), id="torch.compile", marks=pytest.mark.slow),
    pytest.param(
        lambda it: {"my_model": {"params": it}, "loss": torch.ones(())},
        id="others",
        marks=pytest.mark.slow,
    ),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The published files of a checkpoint that is not wrapped, with their digests."""
    folder = tmp_path_factory.mktemp("plain")
    file = save_safetensors(folder / "model.safetensors", tiny_sd15())
    return dict(convert_file(file, folder / "out").files)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrapped_checkpoint_gives_the_same_files(
    tmp_path: Path, plain: dict[str, Any], wrap: Wrap
) -> None:
    """A checkpoint as training programs wrap it gives the same files as the plain checkpoint."""
    torch.save(wrap(tiny_sd15()), tmp_path / "model.ckpt")
    assert convert_file(tmp_path / "model.ckpt", tmp_path / "out").files == plain


def test_safetensors_with_a_prefix_give_the_same_files(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    """A safetensors file whose names have a prefix gives the files of the plain checkpoint."""
    tensors = prefixed(tiny_sd15(), "module.")
    file = save_safetensors(tmp_path / "model.safetensors", tensors)
    assert convert_file(file, tmp_path / "out").files == plain


@pytest.mark.parametrize("model_type", ["custom_ckpt", "embeddings", "lora", "vae", "controlnet"])
def test_hypernetwork_is_named(tmp_path: Path, model_type: str) -> None:
    """The message names a hypernetwork, which is a pickle whose keys are the widths of layers."""
    half = {"linear.0.weight": torch.ones(4, 4), "linear.0.bias": torch.ones(4)}
    content = {768: (half, half), 320: (half, half), "step": 1, "name": "h"}
    torch.save(content, tmp_path / "hyper.pt")
    with pytest.raises(LoaderError) as caught:
        convert_file(tmp_path / "hyper.pt", tmp_path / "out", model_type=model_type)
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == "the file is a hypernetwork, which is not supported"


def test_components_in_separate_dictionaries_are_named(tmp_path: Path) -> None:
    """The message names the keys of the dictionaries, and has no path of the loader."""
    tensors = {"conv_in.weight": torch.ones(4)}
    torch.save({"unet": tensors, "text_encoder": tensors}, tmp_path / "model.ckpt")
    with pytest.raises(LoaderError) as caught:
        convert_file(tmp_path / "model.ckpt", tmp_path / "out")
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == (
        "file: the weights lie under text_encoder, unet; a model is read if its weights lie"
        " together, such as under state_dict, model_state_dict, model, module"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["clip_l", "clip_l_out"],
            "the file is an embedding of OneTrainer with vectors for the text encoder's output"
            " (clip_l_out), which diffusers does not read: train it without output embeddings",
        ),
        (
            ["clip_g", "clip_l", "t5"],
            "the file is an embedding of Stable Diffusion 3 (it holds t5), which is not supported",
        ),
        (
            ["clip_l", "t5"],
            "the file is an embedding of FLUX (it holds t5), which is not supported",
        ),
        (
            ["clip_l"],
            "the file is half an embedding of SDXL: it holds clip_l without clip_g; if it is whole"
            " and of another family, set spec.baseModel",
        ),
        (
            ["text_encoders_0"],
            "the file is half an embedding of SDXL: it holds text_encoders_0 without"
            " text_encoders_1; if it is whole and of another family, set spec.baseModel",
        ),
        (
            ["clip_g"],
            "the file is half an embedding of SDXL: it holds clip_g without clip_l",
        ),
        (
            ["text_encoders_1"],
            "the file is half an embedding of SDXL: it holds text_encoders_1 without"
            " text_encoders_0",
        ),
        (
            ["clip_l", "text_encoders_0"],
            "an embedding is one tensor, or clip_l and clip_g for SDXL; the file holds 2: clip_l,"
            " text_encoders_0; for several concepts load a file for each",
        ),
        (
            ["768.0.linear.0.weight", "768.1.linear.0.weight"],
            "the file is a hypernetwork, which is not supported",
        ),
    ],
)
def test_embedding_that_diffusers_does_not_read_is_named(
    tmp_path: Path, names: list[str], message: str
) -> None:
    """The message names the program or the model that the embedding is from."""
    file = save_safetensors(
        tmp_path / "x.safetensors", {name: torch.ones(2, 768) for name in names}
    )
    with pytest.raises(LoaderError) as caught:
        convert_file(file, tmp_path / "out", model_type="embeddings")
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == message
