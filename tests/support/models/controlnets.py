"""Tiny ControlNets: random weights in the layout of diffusers, and repos of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from devkit.controlnet_layouts import TINY, config
from devkit.layers import Shapes
from tests.support.models.checkpoints import Checkpoint, random_tensors, save_safetensors

# Two published sizes have fewer transformers than the full size; these are their config values.
_SDXL_SIZES = {
    "SDXL mid": {"transformer_layers_per_block": [0, 0, 1]},
    "SDXL small": {
        "down_block_types": ["DownBlock2D"] * 3,
        "mid_block_type": "UNetMidBlock2D",
    },
}


def family_of(architecture: str) -> str:
    """Return the family as spec.baseModel names it."""
    return architecture.replace("SD ", "sd-").removesuffix(".x").split()[0].lower()


def configured(architecture: str) -> dict[str, Any]:
    """Return the config of the tiny model."""
    return config(TINY[family_of(architecture)], **_SDXL_SIZES.get(architecture, {}))


def tiny(architecture: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Return random tensors of the tiny model in the layout of diffusers."""
    return random_tensors(_shapes(architecture), dtype)


@cache
def _shapes(architecture: str) -> Shapes:
    with torch.device("meta"):
        model = ControlNetModel.from_config(configured(architecture))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def theirs(path: Path, architecture: str, dtype: torch.dtype) -> ControlNetModel:
    """Open the file with diffusers."""
    configs = path.parent / "configs"
    configs.mkdir(exist_ok=True)
    (configs / "config.json").write_text(json.dumps(configured(architecture)))
    return ControlNetModel.from_single_file(
        str(path), config=str(configs), local_files_only=True, dtype=dtype
    )


def save_repo(folder: Path, architecture: str, *, safe: bool = True) -> Path:
    """Save a repo as diffusers does."""
    path = folder / "source.safetensors"
    save_safetensors(path, tiny(architecture))
    repo = folder / "repo"
    theirs(path, architecture, torch.float32).save_pretrained(repo, safe_serialization=safe)
    return repo
