"""Converted ControlNets have the tensors and configs that diffusers makes of the same files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file, save_file

from devkit.controlnet_layouts import SD1, SD2, TINY, controlnet_shapes
from sd_api.reasons import Reason
from sd_loader.convert.tables.architecture import load_architecture
from sd_loader.convert.tables.dimensions import Dimensions, matches
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted
from tests.support.models import repoconversions
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import (
    random_tensors,
    save_ckpt,
    save_safetensors,
    tiny_sd15,
)
from tests.support.models.controlnets import configured, family_of, save_repo, theirs, tiny
from tests.support.models.conversions import convert_file, identical
from tests.support.models.tinyrepo import copy_repo, replace

WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TYPE, PEER, OPENS = "controlnet", "ControlNetModel.from_single_file", "ControlNetModel"
FILES: tuple[Row, ...] = (
    Row(TYPE, "SD 1.x", "original .pth", PEER, OPENS),
    Row(TYPE, "SD 1.x", "original .safetensors", PEER, OPENS),
    Row(TYPE, "SD 1.x", "original .safetensors without prefix", PEER, OPENS),
    Row(TYPE, "SD 1.x", "original .ckpt with the whole checkpoint", PEER, OPENS),
    Row(TYPE, "SD 1.x", "diffusers .safetensors", PEER, OPENS),
    Row(TYPE, "SD 2.x", "original .ckpt", PEER, OPENS),
    Row(TYPE, "SD 2.x", "original .safetensors without prefix", PEER, OPENS),
    Row(TYPE, "SD 2.x", "diffusers .safetensors", PEER, OPENS),
    Row(TYPE, "SDXL", "diffusers .safetensors", PEER, OPENS),
    Row(TYPE, "SDXL mid", "diffusers .safetensors", PEER, OPENS),
    Row(TYPE, "SDXL small", "diffusers .safetensors", PEER, OPENS),
)
REPOS: tuple[Row, ...] = tuple(
    Row(TYPE, family, f"diffusers repo, {container}", "ControlNetModel.from_pretrained", OPENS)
    for family in ("SD 1.x", "SD 2.x", "SDXL")
    for container in (".safetensors", ".bin")
)
ROWS = (*FILES, *REPOS)
PRECISIONS = (
    ("fp16", None),
    ("fp32", None),
    ("bf16", None),
    ("fp32", "fp16"),
    ("fp32", "bf16"),
    ("fp16", "fp32"),
)


def save(folder: Path, row: Row, dtype: torch.dtype) -> Path:
    """Write the file that the row describes."""
    if row.container.startswith("diffusers"):
        return save_safetensors(folder / "net.safetensors", tiny(row.architecture, dtype))
    prefix = "" if "without prefix" in row.container else "control_model."
    shapes = controlnet_shapes(TINY[family_of(row.architecture)], prefix)
    tensors = random_tensors(shapes, dtype)
    if "whole" in row.container:
        tensors |= tiny_sd15(dtype, seed=1)
    if ".safetensors" in row.container:
        return save_safetensors(folder / "net.safetensors", tensors)
    return save_ckpt(folder / f"net{row.container.split()[1]}", tensors, nested="ckpt" in str(row))


def compare(ours: Path, model: ControlNetModel) -> None:
    """Assert that the folder equals the model in weights and config, and opens."""
    mine, yours = load_file(ours / WEIGHTS), model.state_dict()
    assert mine.keys() == yours.keys()
    for name, tensor in yours.items():
        assert identical(mine[name], tensor), name
    opened = ControlNetModel.from_pretrained(
        ours, local_files_only=True, dtype=next(iter(mine.values())).dtype
    )
    for name, tensor in opened.state_dict().items():
        assert identical(tensor, yours[name]), name
    assert public(opened.config) == public(model.config)


def public(found: Any) -> dict[str, Any]:
    """The config without private keys and without transformer settings that have no effect."""
    values = {key: value for key, value in found.items() if not key.startswith("_")}
    values["block_out_channels"] = list(values["block_out_channels"])
    kinds, depths = values["down_block_types"], values.pop("transformer_layers_per_block")
    heads = values.pop("attention_head_dim")
    listed = [
        [item] * len(kinds) if isinstance(item, int) else list(item) for item in (depths, heads)
    ]
    shown = [
        (depth, head)
        for kind, depth, head in zip(kinds, *listed, strict=True)
        if kind == "CrossAttnDownBlock2D"
    ]
    if not shown:
        del values["cross_attention_dim"]
    return {
        **{key: list(item) if isinstance(item, tuple) else item for key, item in values.items()},
        "transformers": shown,
    }


@dataclass(frozen=True)
class Case:
    """A ControlNet file, its precision, and the spec.revision to publish it in.

    If `revision` is None, the file's precision is kept.
    """

    row: Row
    precision: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.row}, {self.precision} to {self.revision or 'the same'}"


# Each container once, and each precision of each family once.
CASES = [Case(row, "fp16", None) for row in FILES] + [
    Case(row, precision, revision)
    for row in (FILES[0], FILES[6], FILES[8])
    for precision, revision in PRECISIONS[1:]
]


# `make test` runs SD 1 and SDXL, both layouts, each container, and a cast to more bits.
# `make test-all` runs all cases.
QUICK = (
    Case(FILES[0], "fp16", "fp32"),
    Case(FILES[3], "fp16", None),
    Case(FILES[10], "fp16", None),
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=() if case in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_weights_equal_those_of_diffusers(tmp_path: Path, case: Case) -> None:
    """The folder equals the result of `from_single_file`, and diffusers opens it."""
    path = save(tmp_path, case.row, DTYPES[case.precision])
    out = tmp_path / "out"
    converted = convert_file(path, out, model_type="controlnet", revision=case.revision)

    published = case.revision or case.precision
    compare(out, theirs(path, case.row.architecture, DTYPES[published]))
    assert converted.base_model == family_of(case.row.architecture)
    assert converted.pipeline_class == "ControlNetModel"
    assert converted.precision == published
    assert sorted(converted.files) == ["config.json", WEIGHTS]
    whole = "whole" in case.row.container
    assert ["do not belong to the ControlNet" in warning for warning in converted.warnings] == [
        True
    ] * whole


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet repo of SD 1.x, which tests must not change."""
    return save_repo(tmp_path_factory.mktemp("origin"), "SD 1.x")


@pytest.fixture
def repo(origin: Path, tmp_path: Path) -> Path:
    """A copy of `origin` in hard links: tests may replace its files, but not write to them."""
    return copy_repo(origin, tmp_path / "repo")


def convert_repo(repo: Path, **fields: Any) -> tuple[Path, Converted]:
    """Convert a repo into a new folder beside it. `fields` are those of the request."""
    return repoconversions.convert_repo(repo, model_type="controlnet", **fields)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row in REPOS[1:2] else pytest.mark.slow) for row in REPOS],
    ids=str,
)
def test_controlnet_repo_is_converted(tmp_path: Path, row: Row) -> None:
    """A repo with .safetensors or .bin weights is converted, in the precision of spec.revision."""
    repo = save_repo(tmp_path, row.architecture, safe=row.container.endswith("safetensors"))
    (repo / "README.md").write_text("a ControlNet")

    out, converted = convert_repo(repo, revision="fp16")

    compare(out, ControlNetModel.from_pretrained(repo, dtype=torch.float16))
    assert converted.base_model == family_of(row.architecture)
    assert sorted(converted.files) == ["config.json", WEIGHTS]


@pytest.mark.parametrize("net", [SD1, SD2], ids=lambda net: net.family)
def test_key_table_covers_every_tensor_of_the_published_models(net: Any) -> None:
    """Each tensor at its published size matches a row of the table."""
    (component,) = load_architecture(f"controlnet-{net.family}").components
    shapes = controlnet_shapes(net)
    dimensions: Dimensions = {}
    for row in component.rows:
        assert matches(row.shape, shapes.pop(row.source), dimensions), row
    assert not shapes
    assert dimensions["context"] == net.context


TENSOR = torch.zeros(2, 2)
OTHERS = {
    "a difference": (("difference", "control_model.a"), "its difference"),
    "a ControlNet-LoRA": (("lora_controlnet",), "ControlNet-LoRA"),
    "a ControlNet-LLLite": (("lllite_unet_input_blocks_4.up",), "LLLite"),
    "a union": (("control_add_embedding.linear_1.weight", "task_embedding"), "union"),
    "a T2I adapter": (("adapter.body.0.resnets.0.block1.weight",), "T2I adapter"),
    "one of FLUX.1": (("controlnet_x_embedder.weight",), "a ControlNet of FLUX.1, which diffusers"),
    "SDXL in the original layout": (
        ("control_model.time_embed.0.weight", "control_model.label_emb.0.0.weight"),
        "original layout",
    ),
    "a checkpoint": (
        ("model.diffusion_model.input_blocks.0.0.weight",),
        "it needs spec.modelType: custom_ckpt",
    ),
    "a LoRA": (
        ("lora_unet_down_blocks_0.lora_up.weight",),
        "a LoRA: it needs spec.modelType: lora",
    ),
    "an embedding": (("emb_params",), "it needs spec.modelType: embeddings"),
    "a VAE": (("encoder.conv_in.weight",), "a VAE: it needs spec.modelType: vae"),
    "something else": (("weight",), "the file is not a ControlNet: its 1 tensors are named"),
}


@pytest.mark.parametrize(("names", "words"), OTHERS.values(), ids=OTHERS)
def test_file_that_is_not_a_controlnet_is_refused(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    """A file that is not a ControlNet is refused: diffusers would fail, or use random numbers."""
    tensors = {name: torch.zeros(2, 2) for name in names}
    path = save_safetensors(tmp_path / "net.safetensors", tensors)
    with pytest.raises(LoaderError) as caught:
        convert_file(path, tmp_path / "out", model_type="controlnet")
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert words in caught.value.message


def without(*names: str) -> Any:
    """A function that removes these tensors."""
    return lambda tensors: [tensors.pop(name) for name in names]


DAMAGES = {
    "a missing tensor": (
        "SD 1.x",
        without("mid_block.attentions.0.proj_in.weight"),
        "a tensor is missing: mid_block.attentions.0.proj_in.weight",
    ),
    "another shape": (
        "SD 1.x",
        lambda tensors: tensors.update({"controlnet_mid_block.bias": torch.zeros(7)}),
        "controlnet_mid_block.bias has the shape [7]",
    ),
    "an extra layer": (
        "SD 1.x",
        lambda tensors: tensors.update({"down_blocks.0.resnets.2.conv1.weight": TENSOR}),
        "has a tensor that its architecture does not have",
    ),
    "a middle without its last level": (
        "SDXL",
        lambda tensors: [
            tensors.pop(name) for name in list(tensors) if name.startswith("down_blocks.2.atten")
        ],
        "the ControlNet's middle has other transformers than its last level",
    ),
    "integers": (
        "SD 1.x",
        lambda tensors: tensors.update({"conv_in.bias": torch.zeros(32, dtype=torch.int32)}),
        "conv_in.bias should hold floating-point numbers, but its type is ",
    ),
}


@pytest.mark.parametrize(("architecture", "damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_contradicting_tensors_are_refused(
    tmp_path: Path, architecture: str, damage: Any, words: str
) -> None:
    """If a tensor is missing or has another shape, the loader does not guess."""
    tensors = tiny(architecture)
    damage(tensors)
    path = save_safetensors(tmp_path / "net.safetensors", tensors)
    with pytest.raises(LoaderError) as caught:
        convert_file(path, tmp_path / "out", model_type="controlnet")
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert words in caught.value.message


def test_spec_options_apply_or_are_refused(tmp_path: Path) -> None:
    """spec.upcastAttention goes into the config.

    A baseModel that differs from the file's, and `weights: ema`, are refused.
    """
    path = save_safetensors(tmp_path / "net.safetensors", tiny("SD 2.x"))
    convert_file(path, tmp_path / "out", model_type="controlnet", upcast_attention=True)
    assert json.loads((tmp_path / "out/config.json").read_text())["upcast_attention"] is True
    with pytest.raises(
        LoaderError, match=r"spec\.baseModel is sd-1, but the file is a ControlNet of"
    ):
        convert_file(path, tmp_path / "other", model_type="controlnet", base_model="sd-1")
    with pytest.raises(LoaderError, match=r"spec\.weights: ema is for checkpoints"):
        convert_file(path, tmp_path / "third", model_type="controlnet", weights="ema")


CONFIG_CHANGES = {
    "another class": ({"_class_name": "ControlNetModel_Union"}, "ControlNetModel_Union"),
    "a VAE": ({"_class_name": "AutoencoderKL"}, "it needs spec.modelType: vae"),
    "no class": ({"_class_name": None}, "names the class null"),
    "remote code": ({"auto_map": {"AutoModel": "net.Net"}}, "asks for code of the repo"),
    "another width": ({"block_out_channels": [64, 64, 128, 128]}, "block_out_channels is"),
    "another hint": ({"conditioning_channels": 4}, "conditioning_channels is"),
    "another middle": ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type is"),
    "other depths": ({"transformer_layers_per_block": 2}, "transformer_layers_per_block is"),
    "not a number": ({"cross_attention_dim": "64"}, "cross_attention_dim is"),
    "an extra level": (
        {"transformer_layers_per_block": [1, 1, 1, 1, 1]},
        "transformer_layers_per_block is",
    ),
}


@pytest.mark.parametrize(("changes", "words"), CONFIG_CHANGES.values(), ids=CONFIG_CHANGES)
def test_repo_config_that_its_tensors_contradict_is_refused(
    repo: Path, changes: dict[str, Any], words: str
) -> None:
    """Such a repo is refused: its folder would not open, or would open as another model."""
    found = json.loads((repo / "config.json").read_text())
    replace(repo / "config.json", json.dumps({**found, **changes}))
    with pytest.raises(LoaderError) as caught:
        convert_repo(repo)
    assert words in caught.value.message


def test_unusual_structure_is_converted_by_its_config(tmp_path: Path) -> None:
    """A ControlNet with one resnet per level, which no key table describes, is converted."""
    found = {**configured("SD 1.x"), "layers_per_block": 1}
    model = ControlNetModel.from_config(found)
    model.save_pretrained(tmp_path / "repo")
    out, converted = convert_repo(tmp_path / "repo")
    compare(out, model)
    assert converted.base_model is None


def test_vae_repo_is_refused_as_a_controlnet(tmp_path: Path) -> None:
    """The message names the right model type."""
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "repo")
    with pytest.raises(LoaderError, match=r"it needs spec\.modelType: vae"):
        convert_repo(tmp_path / "repo")


def test_unchanged_weights_are_linked(repo: Path) -> None:
    """A weight file that needs no change is linked, not copied."""
    out, _converted = convert_repo(repo)
    assert (out / WEIGHTS).stat().st_ino == (repo / WEIGHTS).stat().st_ino


def test_unknown_tensor_in_a_repo_is_refused(repo: Path) -> None:
    """A repo with a tensor that its architecture does not have is refused."""
    tensors = load_file(repo / WEIGHTS)
    (repo / WEIGHTS).unlink()
    save_file({**tensors, "down_blocks.9.conv.weight": TENSOR}, repo / WEIGHTS)
    with pytest.raises(LoaderError, match="a tensor that its architecture does not have"):
        convert_repo(repo)
