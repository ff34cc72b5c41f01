"""Every architecture becomes the folder that diffusers makes of it, from every container."""

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
# Those that stand for the others in `make test`.
QUICK = (
    "SD 2.1 (768, v)",
    "SDXL refiner",
    "SD 1.5 inpainting",
    "InstructPix2Pix (SD 1.5)",
    "BK-SDM tiny",
    "SSD-1B",
)
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
    """One architecture's checkpoint, our folders and diffusers' own, each made once."""

    def __init__(self, root: Path, model: TinyModel) -> None:
        self.root = root
        self.model = model
        root.mkdir()
        tensors = model.tensors()
        save_safetensors(root / "model.safetensors", tensors)
        save_ckpt(root / "model.ckpt", tensors, lightning=True)

    def ours(self, container: str) -> tuple[Path, Converted]:
        """What the loader makes of it."""
        out = self.root / f"ours of {container}"
        return out, convert_file(self.root / f"model.{container}", out, **self.model.request)

    def theirs(self) -> Path:
        """What diffusers makes of it, whatever container the tensors came in."""
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
    """Makes a model's workshop; a hundred megabytes each, gone after the test."""

    def open_workshop(model):
        return Workshop(tmp_path / "workshop", model)

    yield open_workshop
    shutil.rmtree(tmp_path)


# diffusers 0.42 has not caught up with numpy 2 and torch 2.13.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@each_model
def test_the_folder_is_that_of_diffusers(workshop, model):
    """The same bytes of weights, the configs of the model's repo, and it runs offline."""
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
    """What diffusers saved is a repo of the same model, and becomes the same weights."""
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
    """model_index.json without options that are null, which is to leave them out."""
    index = json.loads((folder / "model_index.json").read_text())
    return {key: value for key, value in index.items() if value is not None}


def same_weights(ours, theirs, converted):
    """Byte for byte; but transformers 5.6 leaves the prefix of CLIPTextModel out."""
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
    """Ours says at least what the model's repo says; null means the default there."""
    for path in published.rglob("*.json"):
        if path.parent.name.startswith("tokenizer"):
            continue
        said = json.loads((ours / path.relative_to(published)).read_text())
        for key, value in json.loads(path.read_text()).items():
            assert said.get(key) == value, f"{path.parent.name}: {key}"
            assert key in said or path.parent.name != "unet", key


def renders(folder, model):
    """Two steps, offline."""
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
