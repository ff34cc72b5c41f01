"""Tiny VAEs with random weights, in the original layout and in that of diffusers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from devkit.layers import Shapes
from devkit.ldm_layouts import TINY_SD15, vae_shapes
from tests.support.models.checkpoints import Checkpoint, random_tensors, tiny_configs


def tiny(dtype: torch.dtype = torch.float32, prefix: str = "", *, seed: int = 3) -> Checkpoint:
    """Return a tiny VAE in the original layout; its names are the same in all families."""
    shapes = {prefix + name: shape for name, shape in vae_shapes(TINY_SD15).items()}
    return random_tensors(shapes, dtype, seed)


def configs(folder: Path, architecture: str) -> Path:
    """Write the config of the family's tiny VAE; return its folder."""
    name = "sdxl" if architecture == "SDXL" else "sd15"
    where = folder / f"configs {name}"
    return (where if where.exists() else tiny_configs(where, name)) / "vae"


def tiny_diffusers(folder: Path, dtype: torch.dtype, architecture: str = "SD 1.x") -> Checkpoint:
    """Return a tiny VAE in the layout of diffusers."""
    config = AutoencoderKL.load_config(configs(folder, architecture))
    return random_tensors(_shapes(json.dumps(config)), dtype)


@cache
def _shapes(config: str) -> Shapes:
    with torch.device("meta"):
        model = AutoencoderKL.from_config(json.loads(config))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
