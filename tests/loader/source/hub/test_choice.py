"""Tests of the choice of files in a Hub repo."""

from __future__ import annotations

import pytest

from sd_api.choices import Revision
from sd_loader.diffusers_repo.component_files import RepoFile, choose_files
from sd_loader.diffusers_repo.index import Pipeline


def files(*names: str) -> dict[str, RepoFile]:
    """The file list of a repo with only a UNet."""
    return {name: RepoFile(name, 1) for name in ("model_index.json", "unet/config.json", *names)}


@pytest.mark.parametrize(
    ("names", "revision", "chosen"),
    [
        pytest.param(["bin", "safetensors"], None, ["safetensors"], id="safetensors first"),
        pytest.param(["bin"], None, ["bin"], id="pickle if nothing else"),
        pytest.param(["fp16.safetensors", "bin"], None, ["fp16.safetensors"], id="one variant"),
        pytest.param(["fp16.bin", "safetensors"], "fp16", ["safetensors"], id="format first"),
        pytest.param(
            ["bf16.safetensors", "fp16.safetensors", "safetensors"],
            "bf16",
            ["bf16.safetensors"],
            id="bf16",
        ),
        pytest.param(
            ["fp16.safetensors", "safetensors"], "bf16", ["safetensors"], id="plain instead of fp16"
        ),
        pytest.param(
            ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors", "bin"],
            None,
            ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors"],
            id="shards",
        ),
        pytest.param(["-00001-of-00002.safetensors", "bin"], None, ["bin"], id="incomplete shards"),
        pytest.param(
            ["fp16-00001-of-00001.safetensors", "safetensors"],
            "fp16",
            ["fp16-00001-of-00001.safetensors"],
            id="shards of a variant",
        ),
        pytest.param(
            ["-00001-of-00001.fp16.safetensors", "safetensors"],
            "fp16",
            ["-00001-of-00001.fp16.safetensors"],
            id="shards of a variant, old names",
        ),
    ],
)
def test_one_set_of_weights_is_chosen(names, revision, chosen):
    """The loader chooses by format first and by precision second."""

    def full(name: str) -> str:
        dot = "" if name.startswith("-") else "."
        return f"unet/diffusion_pytorch_model{dot}{name}"

    pipeline = Pipeline("StableDiffusionPipeline", {"unet": "UNet2DConditionModel"}, {})
    listing = files(*(full(name) for name in names))
    found = choose_files(listing, pipeline, Revision(revision) if revision else None)
    assert [file.path for file in found[2:]] == [full(name) for name in chosen]
