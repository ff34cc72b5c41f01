"""Fetches a repo with the file names of real repos from a Hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd_loader.errors import LoaderError
from sd_loader.handover import Fetched
from sd_loader.settings import Settings
from tests.support.loader.fetches import fetch
from tests.support.models.conversions import load_request
from tests.support.models.modelindex import INDEX

REPO = "org/model"
UNET = "unet/diffusion_pytorch_model.safetensors"
NEEDED = {
    "model_index.json": json.dumps(
        INDEX
        | {
            "_diffusers_version": "0.6.0",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        }
    ),
    "scheduler/scheduler_config.json": "{}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": "t" * 30_000,
    "tokenizer/added_tokens.json": "{}",
    "tokenizer/merges.txt": "#version: 0.2\n",
    "tokenizer/vocab.json": "{}",
    "unet/config.json": "{}",
    UNET: "u" * 200_000,
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": "v" * 50_000,
}
UNNEEDED = (
    ".gitattributes",
    "README.md",
    "handler.py",
    "model.safetensors",
    "v1-5-pruned.ckpt",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
    "unet/openvino_model.xml",
    "vae_decoder/model.onnx",
)


def write_repo(folder: Path) -> Path:
    """Write a repo with the file names of real repos; the loader needs only some of the files."""
    contents = NEEDED | dict.fromkeys(UNNEEDED, "not needed")
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def load(settings: Settings, into: Path, **fields: object) -> Fetched:
    """Fetch a repo; retries do not wait."""
    request = load_request(model_type="huggingface", **{"url": REPO, **fields})
    return fetch(request, settings, into)


def refusal(settings: Settings, into: Path, **fields: object) -> LoaderError:
    """Assert that the fetch fails, and return the error."""
    with pytest.raises(LoaderError) as caught:
        load(settings, into, **fields)
    return caught.value


def downloaded(into: Path) -> dict[str, str]:
    """Return the downloaded files without the fetcher's notes and partial downloads."""
    return {
        path.relative_to(into / "repo").as_posix(): path.read_text()
        for path in sorted((into / "repo").rglob("*"))
        if path.is_file() and path.suffix not in (".note", ".part")
    }
