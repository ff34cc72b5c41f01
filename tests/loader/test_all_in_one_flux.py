"""The whole pipeline of FLUX.1 in one file loads as diffusers loads it, without torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders import single_file_model, single_file_utils

from devkit.fakehub import FakeHub
from tests.support.loader.loadercli import Containers, artifact_of, load_request
from tests.support.models import tinysd3
from tests.support.models.allinone import whole
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import random_tensors, save_safetensors
from tests.support.models.conversions import assert_same_tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SINGLE, OPENS_WITH = "FluxPipeline.from_single_file", "FluxPipeline"
ROWS = (
    Row("custom_ckpt", "FLUX.1 dev", "safetensors", SINGLE, OPENS_WITH),
    Row("custom_ckpt", "FLUX.1 schnell", "safetensors", SINGLE, OPENS_WITH),
)
WIDTH = 128
"""The width of the transformer that `whole` makes."""

CONVERTER = "convert_flux_transformer_checkpoint_to_diffusers"


def converter_for(width: int) -> Callable[..., Any]:
    """Return diffusers' converter with this width in place of the 3072 in its code."""
    source = inspect.getsource(getattr(single_file_utils, CONVERTER))
    assert source.count("inner_dim = 3072") == 1
    names = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), names)
    converter: Callable[..., Any] = names[CONVERTER]
    return converter


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the tokenizer of T5 in the repos of FLUX.1."""
    configs = tmp_path / "configs"
    tinysd3.write_t5_tokenizer(configs / "tokenizer_2")
    index = {"_class_name": "FluxPipeline", "tokenizer_2": ["transformers", "T5TokenizerFast"]}
    (configs / "model_index.json").write_text(json.dumps(index))
    with FakeHub() as server:
        for name in ("dev", "schnell"):
            server.add_repo(f"black-forest-labs/FLUX.1-{name}", configs)
        yield server


@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_weights_equal_those_of_diffusers(
    row: Row,
    hub: FakeHub,
    containers: Containers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file names its transformer, CLIP, T5 and VAE as ComfyUI does."""
    shapes = whole("flux", vae="vae.")
    if "schnell" in row.architecture:
        shapes = {name: shape for name, shape in shapes.items() if "guidance_in" not in name}
    path = save_safetensors(tmp_path / "flux.safetensors", random_tensors(shapes, torch.bfloat16))
    ended = containers.load(load_request(hub.serve_file("/flux.safetensors", path)))
    artifact = artifact_of(ended)
    assert (artifact.base_model, artifact.pipeline_class) == ("flux", OPENS_WITH)
    assert artifact.precision == "bf16"

    published = containers.store / "model"
    classes = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    monkeypatch.setitem(
        classes["FluxTransformer2DModel"], "checkpoint_mapping_fn", converter_for(WIDTH)
    )
    peer = FluxPipeline.from_single_file(
        str(path), config=str(published), local_files_only=True, dtype=torch.bfloat16
    )
    # diffusers 0.42 leaves T5's embedding untied and without numbers, so saving would fail.
    peer.text_encoder_2.tie_weights()
    peer.save_pretrained(tmp_path / "peer")
    paths = {it.relative_to(published) for it in published.rglob("*.safetensors")}
    assert paths == {
        it.relative_to(tmp_path / "peer") for it in (tmp_path / "peer").rglob("*.safetensors")
    }
    assert_same_tensors(published, tmp_path / "peer")
    opened = FluxPipeline.from_pretrained(published, local_files_only=True)
    assert opened.tokenizer_2.encode("a cat") == peer.tokenizer_2.encode("a cat")
