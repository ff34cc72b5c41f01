"""Tiny VAEs with any number of latent channels, without torch: shapes, files and repos."""

from __future__ import annotations

import json
from typing import Any

from devkit.layers import Shapes, under
from devkit.ldm_layouts import LATENTS, TINY_SD15, vae_shapes
from sd_loader.convert.tables.architecture import load_architecture
from tests.support.models.familyrepos import typed, zeros


def original_vae(channels: int, prefix: str = "") -> Shapes:
    """Return the shapes of a VAE in the original layout."""
    return under(prefix, vae_shapes(TINY_SD15, channels))


def vae_of_diffusers(channels: int) -> Shapes:
    """Return the shapes of a VAE in the layout of diffusers."""
    own = original_vae(channels)
    rows = load_architecture("sdxl").component("vae").rows
    return {
        row.target: own[name][:2] if row.op == "matrix" else own[name]
        for row in rows
        if (name := row.source.removeprefix("first_stage_model.")) in own
    }


def vae_config(channels: int, **config: Any) -> dict[str, Any]:
    """Return diffusers' config of a VAE; `config` changes or adds keys."""
    has_quant_conv = channels == LATENTS
    levels = list(TINY_SD15.vae_levels)
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": levels,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "latent_channels": channels,
        "layers_per_block": 2,
        "use_post_quant_conv": has_quant_conv,
        "use_quant_conv": has_quant_conv,
        **config,
    }


def empty_weights(shapes: Shapes) -> bytes:
    """Return a .safetensors file of these shapes in which every number is 0."""
    return zeros(typed(dict(sorted(shapes.items()))))


def vae_repo(channels: int, **config: Any) -> dict[str, bytes]:
    """Return the files of a VAE's repo."""
    return {
        "config.json": json.dumps(vae_config(channels, **config)).encode(),
        "diffusion_pytorch_model.safetensors": empty_weights(vae_of_diffusers(channels)),
    }
