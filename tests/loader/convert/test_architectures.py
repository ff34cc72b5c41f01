"""A checkpoint of each architecture becomes the folder that diffusers makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd_api.wire import Source
from sd_loader.convert.run import convert
from sd_loader.handover import Converted, Fetched
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import save_ckpt, save_safetensors
from tests.support.models.conversions import conversion, convert_file, identical
from tests.support.models.tinymodels import MODELS, TinyModel

CONTAINERS = ("safetensors", "ckpt")
ROWS = tuple(
    Row("custom_ckpt", model.title, container, f"{model.pipeline}.from_single_file", model.pipeline)
    for model in MODELS
    for container in CONTAINERS
) + tuple(
    Row("huggingface", model.title, "diffusers repo", "save_pretrained", model.pipeline)
    for model in MODELS
)
# `make test` runs only this model: test_checkpoint.py covers SD 1 and SDXL, and test_repo_check.py
# covers inpainting and distilled UNets. `make test-all` runs all.
QUICK = ("SD 2.1 (768, v)",)
PREFIX = "text_model."
WITHOUT_PREFIX = "text_encoder/model.safetensors"

each_model = pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model, id=model.title, marks=() if model.title in QUICK else [pytest.mark.slow]
        )
        for model in MODELS
    ],
)


class Workshop:
    """One architecture's checkpoint, and the folders that the loader and diffusers make of it."""

    def __init__(self, root: Path, model: TinyModel) -> None:
        self.root = root
        self.model = model
        root.mkdir()
        tensors = model.tensors()
        save_safetensors(root / "model.safetensors", tensors)
        save_ckpt(root / "model.ckpt", tensors, lightning=True)

    def ours(self, container: str) -> tuple[Path, Converted]:
        """Convert the checkpoint with the loader."""
        out = self.root / f"ours of {container}"
        return out, convert_file(self.root / f"model.{container}", out, **self.model.request)

    def theirs(self) -> Path:
        """Convert the checkpoint with diffusers."""
        import diffusers

        out = self.root / "theirs"
        configs = self.model.write_configs(self.root / "configs")
        getattr(diffusers, self.model.pipeline).from_single_file(
            str(self.root / "model.safetensors"),
            config=str(configs),
            local_files_only=True,
            dtype=torch.float16,
        ).save_pretrained(out)
        return out


@pytest.fixture
def workshop(tmp_path):
    """A function that makes a model's workshop, about 100 MB, which is deleted after the test."""

    def open_workshop(model):
        return Workshop(tmp_path / "workshop", model)

    yield open_workshop
    shutil.rmtree(tmp_path)


# diffusers 0.42 uses deprecated functions of numpy 2 and torch 2.13.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@each_model
def test_folder_equals_that_of_diffusers(workshop, model):
    """The weights equal those of diffusers, from .safetensors and from .ckpt.

    The configs have the values of the model's repo, the folder renders offline, and the folder
    that diffusers saved converts to the same weights.
    """
    shop = workshop(model)
    theirs = shop.theirs()
    folder, converted = shop.ours("safetensors")
    _, of_pickle = shop.ours("ckpt")

    assert converted == of_pickle
    same_weights(folder, theirs, converted)
    same_configs(folder, shop.root / "configs")
    assert converted.base_model == model.base_model
    assert converted.pipeline_class == model.pipeline
    assert converted.prediction_type == model.prediction_type
    assert len(converted.warnings) == (model.warns is not None)
    assert not converted.warnings or model.warns in converted.warnings[0]
    renders(folder, model)
    same_of_the_repo(shop, folder, converted)


def same_of_the_repo(shop, folder, converted):
    """Assert that the folder that diffusers saved converts to the same model."""
    out = shop.root / "ours of the repo"
    out.mkdir()
    found = convert(
        Fetched(kind="repo", path="theirs", source=Source()),
        shop.root,
        conversion(model_type="huggingface"),
        out,
        lambda _progress: None,
    )
    weights = [path for path in converted.files if path.endswith(".safetensors")]
    assert [found.files[path] for path in weights] == [converted.files[path] for path in weights]
    assert found.base_model == converted.base_model
    assert found.pipeline_class == converted.pipeline_class
    assert found.prediction_type == converted.prediction_type
    assert index_of(out) == index_of(folder)


def index_of(folder):
    """The content of model_index.json without null options, which mean the same as missing ones."""
    index = json.loads((folder / "model_index.json").read_text())
    return {key: value for key, value in index.items() if value is not None}


def same_weights(ours, theirs, converted):
    """Assert that weights are equal except for the prefix that transformers 5.6 leaves out."""
    paths = {path.relative_to(theirs).as_posix() for path in theirs.rglob("*.safetensors")}
    assert paths == {path for path in converted.files if path.endswith(".safetensors")}
    for path in paths - {WITHOUT_PREFIX}:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    if WITHOUT_PREFIX in paths:
        mine, yours = load_file(ours / WITHOUT_PREFIX), load_file(theirs / WITHOUT_PREFIX)
        assert mine.keys() == {PREFIX + name.removeprefix(PREFIX) for name in yours}
        for name, tensor in yours.items():
            assert identical(mine[PREFIX + name.removeprefix(PREFIX)], tensor), name


def same_configs(ours, published):
    """Assert that our configs have every value of the model's repo.

    A null value may be missing in ours, except in the UNet's config. Tokenizers are not compared.
    """
    for path in published.rglob("*.json"):
        if path.parent.name.startswith("tokenizer"):
            continue
        config = json.loads((ours / path.relative_to(published)).read_text())
        for key, value in json.loads(path.read_text()).items():
            assert config.get(key) == value, f"{path.parent.name}: {key}"
            assert key in config or path.parent.name != "unet", key


def renders(folder, model):
    """Assert that the folder renders an image offline in two steps."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == model.pipeline
    image = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    given = {"height": 64, "width": 64}
    if "Img2Img" in model.pipeline:
        given = {"image": image, "strength": 1.0}
    if "Inpaint" in model.pipeline:
        given |= {"image": image, "mask_image": torch.ones(1, 1, 64, 64)}
    if "Pix2Pix" in model.pipeline:
        given = {"image": image} | (given if "XL" in model.pipeline else {})
    images = pipeline("a cat", num_inference_steps=2, output_type="np", **given).images
    assert images.shape == (1, 64, 64, 3)
    assert images.std() > 0.01
