"""Adapters are tried on a base with random weights.

The loader does this on a GPU, with a base of full size. Most of these tests use a tiny base.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from sd_api.choices import ModelType
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.tables.families import PUBLISHED_SIZES
from sd_loader.errors import LoaderError
from sd_loader.handover import Converted
from sd_loader.render import Rendered, explaining, render
from sd_loader.render_adapter import random_pipeline, try_adapter

TINY_SIZES = {
    name: {
        dimension: 64 if dimension.startswith("unet") else 64 if size in (768, 1280) else size
        for dimension, size in sizes.items()
        if not dimension.startswith("vae")
    }
    | {f"vae_{level}": 32 for level in range(4)}
    | {key: 1 for key in sizes if key.endswith("_layers")}
    | {key: 128 for key in sizes if key.endswith("_mlp")}
    for name, sizes in PUBLISHED_SIZES.items()
    if name != "sd-2"
}
WIDTHS = {"sd-1": 64, "sdxl": 128}
BASES = list(TINY_SIZES)
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CASES = [pytest.param(base, marks=pytest.mark.slow) for base in ("sd-1", "sdxl")]


def controlnet(base: str, folder: Path, width: int | None = None) -> None:
    """Save a ControlNet for the tiny base, or for a base with another text encoder width."""
    unet = random_pipeline(base, TINY_SIZES[base], "cpu").unet
    config = {key: value for key, value in unet.config.items() if key[0] != "_"}
    made = UNet2DConditionModel.from_config(
        {**config, "cross_attention_dim": width or WIDTHS[base]}
    )
    ControlNetModel.from_unet(made).save_pretrained(folder)


def attempt(folder: Path, kind: ModelType, base: str) -> None:
    """Try the adapter on the tiny base."""
    with explaining():
        try_adapter(folder, kind, base, TINY_SIZES[base], "cpu")


@pytest.mark.parametrize("base", CASES)
@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
def test_controlnet_runs_on_its_base(tmp_path: Path, base: str) -> None:
    """A ControlNet for another text encoder is refused."""
    controlnet(base, tmp_path / "fits")
    attempt(tmp_path / "fits", ModelType.CONTROLNET, base)

    controlnet(base, tmp_path / "other", width=32)
    with pytest.raises(LoaderError, match="diffusers cannot open or run"):
        attempt(tmp_path / "other", ModelType.CONTROLNET, base)


@pytest.mark.parametrize("base", CASES)
@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
def test_vae_decodes_for_its_base(tmp_path: Path, base: str) -> None:
    """A VAE that computes NaN is refused."""
    vae: AutoencoderKL = random_pipeline(base, TINY_SIZES[base], "cpu").vae
    vae.save_pretrained(tmp_path / "fits")
    attempt(tmp_path / "fits", ModelType.VAE, base)

    torch.nn.init.constant_(vae.decoder.conv_out.bias, float("nan"))
    vae.save_pretrained(tmp_path / "nan")
    with pytest.raises(LoaderError, match="the result is not finite"):
        attempt(tmp_path / "nan", ModelType.VAE, base)


@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
@pytest.mark.slow
def test_embedding_loads_into_its_base(tmp_path: Path) -> None:
    """An embedding of another width than the text encoder is refused."""
    for name, width in (("fits", 64), ("wide", 96)):
        (tmp_path / name).mkdir()
        vectors = {"<word>": torch.ones(2, width)}
        save_file(vectors, tmp_path / name / "learned_embeds.safetensors")
    attempt(tmp_path / "fits", ModelType.EMBEDDINGS, "sd-1")
    with pytest.raises(LoaderError, match="diffusers cannot open or run"):
        attempt(tmp_path / "wide", ModelType.EMBEDDINGS, "sd-1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
def test_both_files_of_an_sdxl_embedding_load_into_their_encoders(tmp_path: Path) -> None:
    """An SDXL embedding has one file for each text encoder."""
    for name in ("learned_embeds", "learned_embeds_2"):
        save_file({"<word>": torch.ones(2, 64)}, tmp_path / f"{name}.safetensors")
    attempt(tmp_path, ModelType.EMBEDDINGS, "sdxl")


@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
def test_lora_loads_into_its_base(tmp_path: Path) -> None:
    """A LoRA for layers of another width is refused."""
    for name, width in (("fits", 64), ("other", 96)):
        down, up = f"{ATTENTION}.lora.down.weight", f"{ATTENTION}.lora.up.weight"
        (tmp_path / name).mkdir()
        save_file(
            {down: torch.ones(4, width), up: torch.ones(64, 4)},
            tmp_path / name / "pytorch_lora_weights.safetensors",
        )
    attempt(tmp_path / "fits", ModelType.LORA, "sd-1")
    with pytest.raises(LoaderError, match="diffusers cannot open or run"):
        attempt(tmp_path / "other", ModelType.LORA, "sd-1")


@pytest.mark.parametrize(
    ("base", "has_gpu", "why"),
    [
        (None, True, "its family is not known; name it in spec.baseModel"),
        ("flux", True, "the loader has no base of FLUX.1 to try it on"),
        ("sd-1", False, "that needs a GPU"),
    ],
    ids=["an unknown family", "a family with a transformer", "no GPU"],
)
def test_adapter_without_a_base_is_published_untried_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None, has_gpu: bool, why: str
) -> None:
    """The folder is empty, so an attempt would fail. The conversion has checked keys and shapes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    conversion = Conversion(ModelType.VAE, "vae")
    converted = Converted(files={}, base_model=base)
    made = render(tmp_path, converted, conversion, lambda _: None)
    assert made == Rendered(warning=f"not tried: {why}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.filterwarnings("ignore")  # warnings from diffusers
def test_full_size_controlnet_and_vae_run_on_a_gpu(tmp_path: Path, base: str) -> None:
    """The ControlNet and the VAE run in half precision on a random base of the published size."""
    pipeline = random_pipeline(base, PUBLISHED_SIZES[base], "cuda").to(dtype=torch.float16)
    ControlNetModel.from_unet(pipeline.unet).save_pretrained(tmp_path / "controlnet")
    pipeline.vae.save_pretrained(tmp_path / "vae")
    del pipeline
    for kind in (ModelType.CONTROLNET, ModelType.VAE):
        with explaining():
            try_adapter(tmp_path / kind.value, kind, base, PUBLISHED_SIZES[base], "cuda")
