"""Converted VAEs have the tensors and configs that diffusers makes of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel
from safetensors.torch import load_file

from sd_api.reasons import Reason
from sd_api.wire import Source
from sd_loader.convert.run import convert
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted, Fetched
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import (
    Checkpoint,
    save_ckpt,
    save_safetensors,
    tiny_sd15,
    tiny_sdxl,
)
from tests.support.models.conversions import conversion, convert_file, identical
from tests.support.models.tinyrepo import save_repo
from tests.support.models.vaes import configs, tiny, tiny_diffusers

WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TYPE, PEER, OPENS = "vae", "AutoencoderKL.from_single_file", "AutoencoderKL"
FILES: tuple[Row, ...] = (
    *(
        Row(TYPE, family, container, PEER, OPENS)
        for family in ("SD 1.x", "SD 2.x", "SDXL")
        for container in ("original .pt", "original .ckpt", "original .safetensors")
    ),
    Row(TYPE, "SD 1.x", "original .safetensors with first_stage_model.*", PEER, OPENS),
    Row(TYPE, "SD 1.x", "within a checkpoint, .ckpt", PEER, OPENS),
    Row(TYPE, "SDXL", "within a checkpoint, .safetensors", PEER, OPENS),
    Row(TYPE, "SD 1.x", "diffusers .safetensors", PEER, OPENS),
    Row(TYPE, "SDXL", "diffusers .safetensors", PEER, OPENS),
)
REPOS: tuple[Row, ...] = tuple(
    Row(TYPE, family, f"diffusers {where}", "AutoencoderKL.from_pretrained", OPENS)
    for family in ("SD 1.x", "SDXL")
    for where in ("repo, .safetensors", "repo, .bin", "pipeline's vae folder")
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
BASES = {"SD 1.x": "sd-1", "SD 2.x": "sd-2", "SDXL": "sdxl"}
FACTORS = {"SD 1.x": 0.18215, "SD 2.x": 0.18215, "SDXL": 0.13025}


def save(folder: Path, row: Row, dtype: torch.dtype) -> Path:
    """Write the file that the row describes."""
    if row.container.startswith("diffusers"):
        tensors = tiny_diffusers(folder, dtype, row.architecture)
    elif row.container.startswith("within"):
        tensors = tiny_sdxl(dtype) if row.architecture == "SDXL" else tiny_sd15(dtype)
    else:
        tensors = tiny(dtype, "first_stage_model." if "first_stage" in row.container else "")
    if ".safetensors" in row.container:
        return save_safetensors(folder / "vae.safetensors", tensors)
    return save_ckpt(folder / "vae.ckpt", tensors, nested=".pt" not in row.container)


def theirs(path: Path, architecture: str, dtype: torch.dtype) -> AutoencoderKL:
    """Convert the file with diffusers."""
    config = configs(path.parent, architecture)
    return AutoencoderKL.from_single_file(
        str(path), config=str(config), local_files_only=True, dtype=dtype
    )


def compare(ours: Path, model: AutoencoderKL) -> None:
    """Assert that the folder equals the model in weights and config, and opens."""
    mine, yours = load_file(ours / WEIGHTS), model.state_dict()
    assert mine.keys() == yours.keys()
    for name, tensor in yours.items():
        assert identical(mine[name], tensor), name
    opened = AutoencoderKL.from_pretrained(
        ours, local_files_only=True, dtype=next(iter(mine.values())).dtype
    )
    for name, tensor in opened.state_dict().items():
        assert identical(tensor, yours[name]), name
    assert public(opened.config) == public(model.config)


def public(config: Any) -> dict[str, Any]:
    """The config without private keys and without keys that do not change an image."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if not key.startswith("_") and key != "sample_size"
    }


@dataclass(frozen=True)
class Case:
    """A VAE file, its precision, and the spec.revision to publish it in.

    If `revision` is None, the file's precision is kept.
    """

    row: Row
    precision: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.row}, {self.precision} to {self.revision or 'the same'}"


def some(rows: Sequence[Any]) -> list[Any]:
    """Mark four of five rows as slow. The others still cover each family and each layout."""
    return [
        row if number % 5 == 0 else pytest.param(row, marks=pytest.mark.slow)
        for number, row in enumerate(rows)
    ]


CASES = [Case(row, "fp16", None) for row in FILES] + [
    Case(row, precision, revision)
    for row in (FILES[0], FILES[8], FILES[-1])
    for precision, revision in PRECISIONS[1:]
]


@pytest.mark.parametrize("case", some(CASES), ids=str)
def test_weights_equal_those_of_diffusers(tmp_path: Path, case: Case) -> None:
    """The folder equals the result of `from_single_file`, and diffusers opens it."""
    path = save(tmp_path, case.row, DTYPES[case.precision])
    out = tmp_path / "out"
    base = BASES[case.row.architecture]
    converted = convert_file(path, out, model_type="vae", revision=case.revision, base_model=base)

    published = case.revision or case.precision
    compare(out, theirs(path, case.row.architecture, DTYPES[published]))
    config = json.loads((out / "config.json").read_text())
    assert config["scaling_factor"] == FACTORS[case.row.architecture]
    assert converted.base_model == base
    assert converted.pipeline_class == "AutoencoderKL"
    assert converted.precision == published
    assert sorted(converted.files) == ["config.json", WEIGHTS]
    assert converted.warnings == ()


def convert_repo(repo: Path, **fields: Any) -> tuple[Path, Converted]:
    """Convert a repo into a new folder beside it. `fields` are those of the request."""
    out = repo.parent / "out"
    out.mkdir()
    options = conversion(**{"model_type": "vae", **fields})
    fetched = Fetched(kind="repo", path=repo.name, source=Source())
    return out, convert(fetched, repo.parent, options, out, lambda _progress: None)


@pytest.mark.parametrize("row", some(REPOS), ids=str)
def test_vae_repo_is_converted(tmp_path: Path, row: Row) -> None:
    """The VAE of a repo is converted, whether the repo is a VAE or a pipeline."""
    repo = tmp_path / "repo"
    if "pipeline" in row.container:
        save_repo(repo, "sdxl" if row.architecture == "SDXL" else "sd15")
        theirs_is = AutoencoderKL.from_pretrained(repo / "vae", dtype=torch.float16)
    else:
        path = save_safetensors(
            tmp_path / "source.safetensors",
            tiny_diffusers(tmp_path, torch.float32, row.architecture),
        )
        model = theirs(path, row.architecture, torch.float32)
        model.save_pretrained(repo, safe_serialization=".bin" not in row.container)
        theirs_is = AutoencoderKL.from_pretrained(repo, dtype=torch.float16)

    out, converted = convert_repo(repo, revision="fp16")

    compare(out, theirs_is)
    assert converted.base_model == BASES[row.architecture]
    assert sorted(converted.files) == ["config.json", WEIGHTS]


def test_old_names_of_the_attention_become_the_current_ones(tmp_path: Path) -> None:
    """The attention's names before diffusers 0.15 are replaced by the current names."""
    tensors = tiny_diffusers(tmp_path, torch.float32)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    convert_file(
        save_safetensors(tmp_path / "old.safetensors", renamed), tmp_path / "old", model_type="vae"
    )
    convert_file(
        save_safetensors(tmp_path / "new.safetensors", tensors), tmp_path / "new", model_type="vae"
    )
    assert (tmp_path / "old" / WEIGHTS).read_bytes() == (tmp_path / "new" / WEIGHTS).read_bytes()


BASE_MODELS: dict[str, tuple[dict[str, str] | None, dict[str, str], str, bool]] = {
    "nothing is said": (None, {}, "sd-1", True),
    "the spec says it": (None, {"base_model": "sdxl"}, "sdxl", False),
    "the metadata say it": (
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"},
        {},
        "sdxl",
        False,
    ),
    "the spec overrides": (
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"},
        {"base_model": "sd-1"},
        "sd-1",
        False,
    ),
}


@pytest.mark.parametrize(
    ("metadata", "fields", "base", "warned"), BASE_MODELS.values(), ids=BASE_MODELS
)
def test_scaling_factor_is_that_of_the_base_model(
    tmp_path: Path,
    metadata: dict[str, str] | None,
    fields: dict[str, str],
    base: str,
    warned: bool,
) -> None:
    """The VAEs of SD 1 and SDXL have the same keys, so a guess causes a warning."""
    path = save_safetensors(tmp_path / "vae.safetensors", tiny(), metadata)
    converted = convert_file(path, tmp_path / "out", model_type="vae", **fields)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["scaling_factor"] == (0.13025 if base == "sdxl" else 0.18215)
    assert converted.base_model == base
    guess = "taken for sd-1's (scaling_factor 0.18215); for another set spec.baseModel"
    assert [guess in warning for warning in converted.warnings] == [True] * warned


def test_training_losses_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """Tensors of training losses are not published, and a warning names them."""
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(3)}
    path = save_ckpt(tmp_path / "vae.ckpt", tiny() | loss)
    converted = convert_file(path, tmp_path / "out", model_type="vae", base_model="sd-1")
    assert converted.warnings == (
        "2 tensors have no place in the VAE and were left out, first loss.logvar",
    )


OTHERS = {
    "a checkpoint without one": (
        {"model.diffusion_model.input_blocks.0.0.weight": (2, 2)},
        "a checkpoint without a VAE of its own: it needs spec.modelType: custom_ckpt",
    ),
    "an embedding": ({"emb_params": (2, 2)}, "it needs spec.modelType: embeddings"),
    "a LoRA": ({"lora_unet_a.lora_up.weight": (2, 2)}, "a LoRA: it needs spec.modelType: lora"),
    "a ControlNet": (
        {"control_model.time_embed.0.weight": (2, 2)},
        "a ControlNet: it needs spec.modelType: controlnet",
    ),
    "a TAESD": ({"encoder.layers.0.weight": (2, 2)}, "a tiny VAE"),
    "a decoder alone": ({"decoder.conv_in.weight": (2, 2)}, "the file is not a VAE"),
    "one of FLUX.2": (
        {"encoder.conv_in.weight": (32, 3, 3, 3), "decoder.conv_in.weight": (32, 32, 3, 3)},
        "a VAE of 32 latent channels",
    ),
    "something else": ({"weight": (2, 2)}, "the file is not a VAE: its 1 tensors are named like"),
}


@pytest.mark.parametrize(("shapes", "words"), OTHERS.values(), ids=OTHERS)
def test_file_that_is_not_a_vae_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    """A file that is not a VAE is refused: diffusers would fail or fill in random numbers."""
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    path = save_safetensors(tmp_path / "vae.safetensors", tensors)
    with pytest.raises(LoaderError) as caught:
        convert_file(path, tmp_path / "out", model_type="vae")
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert words in caught.value.message


def drop(tensors: Checkpoint) -> None:
    """Remove a tensor."""
    del tensors["decoder.mid.attn_1.q.weight"]


def widen(tensors: Checkpoint) -> None:
    """Make a tensor wider than its neighbours."""
    tensors["decoder.conv_out.weight"] = torch.zeros(3, 40, 3, 3)


def add_a_block(tensors: Checkpoint) -> None:
    """Add a block that the architecture does not have."""
    tensors["encoder.down.4.block.0.conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop, "a tensor is missing: decoder.mid.attn_1.q.weight"),
        (widen, "decoder.conv_out.weight has the shape [3, 40, 3, 3]"),
        (add_a_block, "has a tensor that its architecture does not have"),
    ],
)
def test_contradicting_tensors_are_refused(
    tmp_path: Path, damage: Callable[[Checkpoint], None], words: str
) -> None:
    """If a tensor is missing, has another shape or is unknown, the loader does not guess."""
    tensors = tiny()
    damage(tensors)
    path = save_safetensors(tmp_path / "vae.safetensors", tensors)
    with pytest.raises(LoaderError) as caught:
        convert_file(path, tmp_path / "out", model_type="vae")
    assert caught.value.reason is Reason.CONVERSION_FAILED
    assert words in caught.value.message


def test_repo_of_another_class_is_refused(tmp_path: Path) -> None:
    """Repos of a tiny VAE and of a ControlNet are refused as VAEs."""
    for number, (model, words) in enumerate(
        (
            (AutoencoderTiny(), "AutoencoderTiny"),
            (
                ControlNetModel(
                    block_out_channels=(32,),
                    down_block_types=("DownBlock2D",),
                    cross_attention_dim=8,
                ),
                "it needs spec.modelType: controlnet",
            ),
        )
    ):
        repo = tmp_path / str(number) / "repo"
        model.save_pretrained(repo)
        with pytest.raises(LoaderError) as caught:
            convert_repo(repo)
        assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
        assert words in caught.value.message


def test_conversion_fails_if_the_vae_of_the_spec_is_not_downloaded(tmp_path: Path) -> None:
    """If the VAE of the spec was not downloaded, the checkpoint's own VAE is not used instead.

    The record of the download may come from another version of the loader.
    """
    path = save_safetensors(tmp_path / "model.safetensors", tiny_sd15())
    with pytest.raises(
        LoaderError, match="components of the spec are not downloaded: vae; run fetch again"
    ) as caught:
        convert_file(path, tmp_path / "out", vae={"url": "org/vae"})
    assert caught.value.reason is Reason.LOADER_CRASHED


def test_base_model_that_contradicts_a_repo_is_refused(tmp_path: Path) -> None:
    """A spec.baseModel that contradicts the VAE's config is refused: images would be wrong."""
    path = save_safetensors(
        tmp_path / "source.safetensors", tiny_diffusers(tmp_path, torch.float32)
    )
    theirs(path, "SDXL", torch.float32).save_pretrained(tmp_path / "repo")
    with pytest.raises(
        LoaderError, match=r"spec\.baseModel is sd-1, but the repo's vae is of sdxl"
    ):
        convert_repo(tmp_path / "repo", base_model="sd-1")
