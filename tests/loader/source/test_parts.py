"""Components of a checkpoint that come from spec.vae or from the configured defaults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from sd_api.spec import VaeSource
from tests.support.loader.loadercli import Containers, failed, load_request
from tests.support.loader.loadercli import artifact_of as loaded
from tests.support.loader.partloads import WEIGHTS, load_with_vae, served, without
from tests.support.models.catalog import Row
from tests.support.models.checkpoints import (
    save_ckpt,
    save_safetensors,
    smallest_sd15,
    tiny_sd15,
    tiny_sdxl,
)
from tests.support.models.conversions import identical
from tests.support.models.tinyrepo import save_repo
from tests.support.models.vaes import configs, tiny, tiny_diffusers

PEER, OPENS = "AutoencoderKL.from_single_file", "DiffusionPipeline"
ROWS: tuple[Row, ...] = tuple(
    Row("custom_ckpt", family, f"checkpoint, VAE {what}", PEER, OPENS)
    for family in ("SD 1.x", "SDXL")
    for what in ("replaced by spec.vae", "missing and given by spec.vae", "missing, from a default")
)
MAKERS = {"SD 1.x": (smallest_sd15, "sd15", "sd-1"), "SDXL": (tiny_sdxl, "sdxl", "sdxl")}
USUAL = ROWS[:1]
"""The rows of `make test`. Another test covers text encoders, which come from a default repo."""


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row in USUAL else pytest.mark.slow) for row in ROWS],
    ids=str,
)
def test_vae_comes_from_another_source(
    containers: Containers, hub: FakeHub, tmp_path: Path, row: Row
) -> None:
    """The published VAE equals the given one, whether or not the checkpoint has its own."""
    make, name, base = MAKERS[row.architecture]
    tensors = make()
    if "missing" in row.container:
        tensors = without(tensors, "first_stage_model.")
    url = served(hub, tmp_path, "model.safetensors", tensors)
    fields: dict[str, Any] = {}
    if "default" in row.container:
        repo = save_repo(tmp_path / "repo", name)
        hub.add_repo("org/defaults", repo)
        containers.env["SD_LOADER_DEFAULT_PARTS"] = f"{base}=org/defaults"
        theirs = AutoencoderKL.from_pretrained(repo / "vae", dtype=torch.float16)
    else:
        other = tiny(seed=9)
        fields["vae"] = VaeSource(url=served(hub, tmp_path, "vae.safetensors", other))
        theirs = AutoencoderKL.from_single_file(
            str(tmp_path / "vae.safetensors"),
            config=str(configs(tmp_path, row.architecture)),
            dtype=torch.float16,
        )

    ended = containers.load(load_request(url, model_type="custom_ckpt", revision="fp16", **fields))

    assert loaded(ended).base_model == base
    folder = (containers.store / "model").resolve()
    mine = load_file(folder / "vae" / WEIGHTS)
    assert mine.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert identical(mine[key], tensor), key
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.vae.config.scaling_factor == theirs.config.scaling_factor
    assert ended.result is not None
    warning = "the checkpoint has no vae: taken from org/defaults"
    assert (warning in ended.result.message) == ("default" in row.container)
    if "default" in row.container:
        requested = [request.path for request in hub.requests]
        assert not any("unet" in path or "text_encoder" in path for path in requested)


@pytest.mark.parametrize(
    ("family", "components"),
    [
        ("SD 1.x", ["text_encoder"]),
        pytest.param("SDXL", ["text_encoder", "text_encoder_2"], marks=pytest.mark.slow),
    ],
)
def test_missing_text_encoders_come_from_the_default_repo(
    containers: Containers, hub: FakeHub, tmp_path: Path, family: str, components: list[str]
) -> None:
    """The encoders' tensors equal those of the repo, and the folder opens."""
    make, repo, base = MAKERS[family]
    hub.add_repo("org/defaults", save_repo(tmp_path / "repo", repo))
    containers.env["SD_LOADER_DEFAULT_PARTS"] = f"{base}=org/defaults"
    lacking = without(make(), "cond_stage_model.", "conditioner.", "first_stage")
    url = served(hub, tmp_path, "model.safetensors", lacking)
    ended = containers.load(load_request(url, model_type="custom_ckpt"))
    loaded(ended)
    folder = (containers.store / "model").resolve()
    for component in components:
        mine = load_file(folder / component / "model.safetensors")
        theirs = load_file(tmp_path / "repo" / component / "model.safetensors")
        plain = {name.removeprefix("text_model."): tensor for name, tensor in mine.items()}
        assert plain.keys() == {name.removeprefix("text_model.") for name in theirs}
        for name, tensor in theirs.items():
            assert identical(plain[name.removeprefix("text_model.")], tensor), name
    DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_default_component_of_another_width_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The pipeline would open and fail at the first image."""
    repo = save_repo(tmp_path / "repo")
    hub.add_repo("org/defaults", repo)
    containers.env["SD_LOADER_DEFAULT_PARTS"] = "sd-1=org/defaults"
    tensors = without(tiny_sd15(), "cond_stage_model.")
    wider = {
        name: torch.cat([tensor, tensor], 1)
        if "attn2.to_k" in name or "attn2.to_v" in name
        else tensor
        for name, tensor in tensors.items()
    }
    url = served(hub, tmp_path, "model.safetensors", wider)
    ended = containers.load(load_request(url, model_type="custom_ckpt"))
    failed(ended, Reason.CONVERSION_FAILED, "has the shape [32, 128]")


def test_missing_component_without_a_default_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The message names the component, spec.vae and the operator's setting."""
    tensors = without(smallest_sd15(), "first_stage_model.")
    url = served(hub, tmp_path, "model.safetensors", tensors)
    containers.env["SD_LOADER_DEFAULT_PARTS"] = "sdxl=org/defaults"
    ended = containers.load(load_request(url, model_type="custom_ckpt"))
    failed(ended, Reason.UNSUPPORTED_FORMAT, "the checkpoint has no VAE (first_stage_model.*)")
    assert ended.result is not None
    assert "spec.vae" in ended.result.message
    assert "SD_OPERATOR_LOADER_DEFAULT_PARTS" in ended.result.message


def test_replaced_vae_of_a_repo_is_not_downloaded(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The replacement comes from a repo, then from a pickled file of that repo."""
    repo = save_repo(tmp_path / "repo")
    hub.add_repo("org/model", repo)
    other = tmp_path / "other"
    AutoencoderKL.from_config(AutoencoderKL.load_config(repo / "vae")).save_pretrained(other)
    save_ckpt(other / "vae.pt", tiny(seed=9), nested=False)
    hub.add_repo("org/vae", other)
    request = load_request("org/model", vae=VaeSource(url="org/vae"))
    loaded(containers.load(request))
    folder = (containers.store / "model").resolve()
    mine, theirs = load_file(folder / "vae" / WEIGHTS), load_file(other / WEIGHTS)
    assert all(identical(mine[name], tensor) for name, tensor in theirs.items())
    assert json.loads((folder / "model_index.json").read_text())["vae"] == [
        "diffusers",
        "AutoencoderKL",
    ]
    requested = [request.path for request in hub.requests]
    assert not any("org/model" in path and "/vae/" in path for path in requested)

    link = f"{hub.url}/org/vae/resolve/main/vae.pt"
    loaded(containers.load(load_request("org/model", vae=VaeSource(url=link), reload="1")))
    folder = (containers.store / "model").resolve()
    assert load_file(folder / "vae" / WEIGHTS).keys() == theirs.keys()


@pytest.mark.slow
def test_load_accepts_a_local_vae(containers: Containers, checkpoint: Path, tmp_path: Path) -> None:
    """`--vae FILE` with a changed file loads the model again."""
    arguments = ["load", "--url", checkpoint, "--model-id", "model", "--store", containers.store]
    versions = []
    for seed in (1, 2):
        vae = save_safetensors(tmp_path / "vae.safetensors", tiny(seed=seed))
        ended = containers.run(*arguments, "--vae", vae)
        assert ended.code == 0, ended.stderr
        versions.append((containers.store / "model").resolve())
    assert versions[0] != versions[1]


def test_invalid_vae_source_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The message names the problem or the field, and nothing is published."""
    embedding = served(hub, tmp_path, "embedding.safetensors", {"emb_params": torch.zeros(1, 64)})
    ended = load_with_vae(containers, hub, tmp_path, embedding)
    failed(ended, Reason.UNSUPPORTED_FORMAT, "the file is a textual-inversion embedding")
    ended = load_with_vae(containers, hub, tmp_path, f"{hub.url}/nothing")
    failed(ended, Reason.SOURCE_NOT_FOUND, "spec.vae.url: ")
    ended = load_with_vae(containers, hub, tmp_path, "no repo")
    failed(ended, Reason.INVALID_SPEC, "spec.vae.url must be a Hugging Face repo id (ORG/NAME)")
    pickle = hub.serve_file("/vae.pt", save_ckpt(tmp_path / "vae.pt", tiny()))
    ended = load_with_vae(containers, hub, tmp_path, pickle, from_safetensors=True)
    failed(ended, Reason.UNSAFE_MODEL, "spec.vae.url: ")
    ended = load_with_vae(containers, hub, tmp_path, "http://169.254.169.254/vae")
    failed(ended, Reason.ADDRESS_REFUSED, "spec.vae.url: ")
    assert not (containers.store / "model").exists()


def test_vae_field_is_refused_for_a_vae(containers: Containers) -> None:
    """Only a whole model can have another VAE."""
    request = load_request("org/vae", model_type="vae", vae=VaeSource(url="org/other"))
    ended = containers.load(request)
    failed(ended, Reason.INVALID_SPEC, "spec.vae is for whole models; modelType vae has none")


@pytest.mark.slow
def test_vae_of_another_family_loads_with_a_warning(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The user may want this, so the loader only warns."""
    repo = shutil.copytree(configs(tmp_path, "SDXL"), tmp_path / "vae")
    save_safetensors(repo / WEIGHTS, tiny_diffusers(tmp_path, torch.float16, "SDXL"))
    hub.add_repo("org/vae", repo)
    ended = load_with_vae(containers, hub, tmp_path, "org/vae")
    loaded(ended)
    assert ended.result is not None
    assert "the VAE is, by its scaling_factor, one of sdxl" in ended.result.message


def test_invalid_default_parts_setting_is_named(containers: Containers) -> None:
    """The message names the variable and the form of its entries."""
    containers.env["SD_LOADER_DEFAULT_PARTS"] = "sd9=org/name"
    ended = containers.load(load_request("org/model"))
    failed(ended, Reason.INVALID_SPEC, "SD_LOADER_DEFAULT_PARTS must be entries BASE=ORG/NAME")
