"""Converted checkpoints have the same tensors as the folders that diffusers makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from sd_api.wire import Stage
from sd_loader.digests import blake3_of
from sd_loader.handover import Converted
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import (
    save_ckpt,
    save_safetensors,
    tiny_configs,
    tiny_sd15,
    tiny_sdxl,
)
from tests.support.models.conversions import convert_file, identical

MAKERS = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# transformers 5.6 and later omits the prefix of CLIPTextModel, and 4.57 cannot read the result.
WITHOUT_PREFIX = "text_encoder/model.safetensors"
PREFIX = "text_model."


@dataclass(frozen=True)
class Case:
    """A conversion. If `revision` is None, the source's precision is kept."""

    architecture: str
    container: str
    precision: str
    revision: str | None = None

    @property
    def published(self) -> str:
        """The precision of the result."""
        return self.revision or self.precision

    def __str__(self) -> str:
        to = f" to {self.revision}" if self.revision else ""
        return f"{self.architecture} {self.precision} {self.container}{to}"


ROWS = tuple(
    Row("custom_ckpt", title, container, f"{pipeline}.from_single_file", pipeline)
    for title, pipeline in (
        ("SD 1.x", "StableDiffusionPipeline"),
        ("SDXL base, and Turbo, Lightning and their like", "StableDiffusionXLPipeline"),
    )
    for container in ("safetensors", "ckpt")
)
# What `make test` runs: each architecture and container, and a cast. `make test-all` runs all.
QUICK = (
    Case("sd15", "safetensors", "fp16"),
    Case("sd15", "ckpt", "fp32", "fp16"),
    Case("sdxl", "safetensors", "fp16"),
)
CASES = [
    Case("sd15", "safetensors", "fp16"),
    Case("sd15", "ckpt", "fp16"),
    Case("sd15", "ckpt", "fp32"),
    Case("sd15", "ckpt", "fp32", "fp16"),
    Case("sd15", "safetensors", "fp32", "bf16"),
    Case("sd15", "safetensors", "bf16", "fp32"),
    Case("sdxl", "safetensors", "fp16"),
    Case("sdxl", "ckpt", "fp32", "fp16"),
]


class Workshop:
    """Checkpoints, and the folders that the loader and diffusers make of them, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ours: dict[Case, Converted] = {}
        self._pipelines: dict[Case, DiffusionPipeline] = {}

    def file(self, case: Case) -> Path:
        """Return the checkpoint's path; write the checkpoint first if it is missing."""
        folder = self.root / f"{case.architecture} {case.precision} {case.container}"
        path = folder / f"model.{case.container}"
        if not path.exists():
            folder.mkdir()
            save = save_safetensors if case.container == "safetensors" else save_ckpt
            save(path, MAKERS[case.architecture](DTYPES[case.precision]))
        return path

    def ours(self, case: Case) -> tuple[Path, Converted]:
        """Convert the checkpoint with the loader."""
        out = self.root / f"ours of {case}"
        if case not in self._ours:
            self._ours[case] = convert_file(self.file(case), out, revision=case.revision)
        return out, self._ours[case]

    def theirs(self, case: Case) -> Path:
        """Convert the checkpoint with diffusers."""
        out = self.root / f"theirs of {case}"
        if not out.exists():
            self.pipeline(case).save_pretrained(out)
        return out

    def pipeline(self, case: Case) -> DiffusionPipeline:
        """Open the checkpoint with diffusers."""
        if case not in self._pipelines:
            configs = self.root / f"configs {case.architecture}"
            if not configs.exists():
                tiny_configs(configs, case.architecture)
            kind = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
            self._pipelines[case] = kind[case.architecture].from_single_file(
                str(self.file(case)),
                config=str(configs),
                local_files_only=True,
                dtype=DTYPES[case.published],
            )
        return self._pipelines[case]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """One workshop for all tests, which must not change its files."""
    root = tmp_path_factory.mktemp("workshop")
    yield Workshop(root)
    shutil.rmtree(root)  # a gigabyte


def each(cases: Sequence[Case], quick: Collection[Case] = QUICK) -> pytest.MarkDecorator:
    """Run a test once for each of the cases; the cases that are not in `quick` are slow tests."""
    rows = [
        pytest.param(case, id=str(case), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]
    return pytest.mark.parametrize("case", rows)


LEFT_OVER = ("position_ids", "logit_scale")
PLAIN = [
    Case(architecture, container, "fp16")
    for architecture in MAKERS
    for container in ("safetensors", "ckpt")
]


@each(PLAIN, quick=PLAIN[2:3])
def test_diffusers_converts_a_tiny_checkpoint_completely(workshop, case):
    """Every parameter of the pipeline is loaded, and no weight of the checkpoint is left over.

    So the tiny checkpoints of the tests are realistic.
    """
    pipeline = workshop.pipeline(case)
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    parameters = [value for model in models for value in model.parameters()]
    weights = [
        value
        for name, value in MAKERS[case.architecture]().items()
        if "." in name and not name.endswith(LEFT_OVER)
    ]
    assert not any(value.is_meta for value in parameters)
    assert sum(value.numel() for value in parameters) == sum(value.numel() for value in weights)


@each(CASES)
def test_weights_equal_those_of_diffusers(workshop, case):
    """All weight files are equal, except the text encoder's: only its tensor names may differ.

    See PREFIX.
    """
    ours, converted = workshop.ours(case)
    theirs = workshop.theirs(case)

    paths = {path.relative_to(theirs).as_posix() for path in theirs.rglob("*.safetensors")}
    assert paths == {path for path in converted.files if path.endswith(".safetensors")}
    for path in paths - {WITHOUT_PREFIX}:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    mine, yours = load_file(ours / WITHOUT_PREFIX), load_file(theirs / WITHOUT_PREFIX)
    assert all(name.startswith(PREFIX) for name in mine)
    assert mine.keys() == {PREFIX + name.removeprefix(PREFIX) for name in yours}
    for name, tensor in yours.items():
        assert identical(mine[PREFIX + name.removeprefix(PREFIX)], tensor), name


# diffusers 0.42 uses deprecated functions of numpy 2 and torch 2.13.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
# `make test` runs only SDXL: test_architectures.py renders a folder of SD 2.
@each(PLAIN, quick=PLAIN[2:3])
def test_diffusers_opens_and_renders_the_folder(workshop, case):
    """Diffusers opens the folder offline and renders an image.

    The configs agree with those that diffusers writes.
    """
    folder, converted = workshop.ours(case)

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images

    assert type(pipeline).__name__ == converted.pipeline_class
    assert images.shape == (1, 64, 64, 3)
    assert images.std() > 0.01
    reference = workshop.theirs(Case(case.architecture, "safetensors", "fp16"))
    for name in ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2"):
        if hasattr(pipeline, name):
            (path,) = (reference / name).glob("*config.json")
            yours = public_config(json.loads(path.read_text()))
            # Our config may hold more keys, because scheduler configs also serve other schedulers.
            mine = public_config(getattr(pipeline, name).config)
            assert {key: mine.get(key) for key in yours} == yours, name


def public_config(config):
    """A component's config without bookkeeping keys and without values that are null or false."""
    values = config if isinstance(config, dict) else config.to_dict()
    bookkeeping = ("_", "transformers_version", "dtype", "torch_dtype", "architectures")
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if not key.startswith(bookkeeping) and value not in (None, False)
    }


@pytest.mark.parametrize("architecture", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_result_does_not_depend_on_the_container(workshop, architecture):
    """The same weights give the same files and digests."""
    _, one = workshop.ours(Case(architecture, "safetensors", "fp16"))
    _, other = workshop.ours(Case(architecture, "ckpt", "fp16"))
    assert one == other


@each(CASES[:3] + CASES[6:7])
def test_result_describes_the_folder(workshop, case):
    """The result lists every file with its digest and size."""
    folder, converted = workshop.ours(case)

    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    assert converted.files.keys() == found.keys()
    for name, path in found.items():
        content = path.read_bytes()
        assert converted.files[name].blake3 == blake3_of(content)
        assert converted.files[name].size == len(content)
        assert path.stat().st_mode & 0o777 == 0o644
    assert converted.precision == case.published
    assert converted.base_model == {"sd15": "sd-1", "sdxl": "sdxl"}[case.architecture]
    assert converted.prediction_type == "epsilon"
    assert converted.warnings == ()


def test_progress_reaches_the_end(tmp_path):
    """Progress first counts the bytes of the output up to their end; verifying comes last."""
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15())
    progress = []
    converted = convert_file(path, tmp_path / "out", progress)
    last = [entry for entry in progress if entry.stage is Stage.CONVERTING][-1]
    assert last.bytes_done == last.bytes_total == sum(f.size for f in converted.files.values())
    assert progress[-1].stage is Stage.VERIFYING
