"""Tiny checkpoints in the original layout: random weights with real structures and files.

The module fills the shapes of `ldm_layouts` with numbers and writes them as .safetensors or .ckpt.
`tiny_configs` writes the folder with which diffusers' `from_single_file(..., config=folder)`
converts them offline.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from devkit.layers import Shapes
from devkit.ldm_layouts import TINY_SD15, TINY_SDXL, Widths, ema_shapes, sd15_shapes, sdxl_shapes
from devkit.tiny import SMALLEST_SD15, SMALLEST_SDXL

Checkpoint = dict[str, torch.Tensor]

LIGHTNING_EXTRAS: Mapping[str, Any] = {
    "epoch": 13,
    "global_step": 470000,
    "pytorch-lightning_version": "1.4.2",
    "optimizer_states": [],
    "lr_schedulers": [],
}


def tiny_sd15(
    dtype: torch.dtype = torch.float16, *, ema: bool = False, seed: int = 0
) -> Checkpoint:
    """Return a Stable Diffusion 1.x checkpoint of about 17 million numbers (25 with EMA)."""
    shapes = sd15_shapes(TINY_SD15) | (ema_shapes(TINY_SD15) if ema else {})
    return random_tensors(shapes, dtype, seed)


def tiny_sdxl(dtype: torch.dtype = torch.float16, *, seed: int = 0) -> Checkpoint:
    """Return a Stable Diffusion XL base checkpoint of about 48 million numbers."""
    return random_tensors(sdxl_shapes(TINY_SDXL), dtype, seed)


def smallest_sd15(dtype: torch.dtype = torch.float16, *, seed: int = 0) -> Checkpoint:
    """Return a checkpoint of a distilled Stable Diffusion 1.x of about 12 million numbers."""
    return random_tensors(sd15_shapes(SMALLEST_SD15), dtype, seed)


def smallest_sdxl(dtype: torch.dtype = torch.float16, *, seed: int = 0) -> Checkpoint:
    """Return a checkpoint of a distilled Stable Diffusion XL of about 23 million numbers."""
    return random_tensors(sdxl_shapes(SMALLEST_SDXL), dtype, seed)


def random_tensors(shapes: Shapes, dtype: torch.dtype, seed: int = 0) -> Checkpoint:
    """Return random tensors scaled so that a network's values neither vanish nor overflow."""
    tensors = _random_tensors(tuple(shapes.items()), dtype, seed)
    return {name: tensor.clone() for name, tensor in tensors.items()}


# The tests of a module often need the same checkpoint, and a copy takes a fifth of the time that
# making it again takes.
@lru_cache(maxsize=2)
def _random_tensors(
    shapes: tuple[tuple[str, tuple[int, ...]], ...], dtype: torch.dtype, seed: int
) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, dtype, generator) for name, shape in shapes}


def _random(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if name == "model_ema.num_updates":
        return torch.tensor(470000, dtype=torch.int32)
    if name == "model_ema.decay":
        return torch.tensor(0.9999)
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        values *= 1 / math.sqrt(math.prod(shape[1:]))
    else:
        values *= 0.02
        if name.endswith("weight"):
            values += 1
    return values.to(dtype)


def save_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    """Write a .safetensors file with the safetensors library."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata)
    return path


def save_ckpt(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    nested: bool = True,
    extras: Mapping[str, Any] = LIGHTNING_EXTRAS,
    lightning: bool = False,
    legacy: bool = False,
) -> Path:
    """Write a .ckpt with torch.save, as training programs do.

    With `nested` the tensors are under `state_dict`, beside the extras. With `lightning` the
    file has the state of a pytorch_lightning callback, whose class
    `torch.load(weights_only=True)` rejects. With `legacy` the file has torch's format from
    before 1.6.
    """
    zipped = not legacy
    if not nested:
        torch.save(dict(tensors), path, _use_new_zipfile_serialization=zipped)
        return path
    content = {**extras, "state_dict": dict(tensors)}
    if not lightning:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path
    with _model_checkpoint_class() as callback:
        state = {"monitor": "val/loss", "best_model_score": torch.tensor(0.5), "dirpath": "logs"}
        torch.save(
            {**content, "callbacks": {callback: state}},
            path,
            _use_new_zipfile_serialization=zipped,
        )
    return path


@contextlib.contextmanager
def _model_checkpoint_class() -> Iterator[type]:
    """Yield a stand-in for the callback's class. Inside the `with` block, pickle can import it."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    packages = ["pytorch_lightning", "pytorch_lightning.callbacks"]
    stand_ins = {name: types.ModuleType(name) for name in packages} | {module.__name__: module}
    if stand_ins.keys() & sys.modules.keys():
        raise RuntimeError("pytorch_lightning is installed: use its own class")
    sys.modules.update(stand_ins)
    try:
        yield callback
    finally:
        for name in stand_ins:
            del sys.modules[name]


def tiny_configs(folder: Path, architecture: str) -> Path:
    """Write the diffusers configs of `tiny_sd15` ("sd15") or `tiny_sdxl` ("sdxl").

    The tokenizers know single bytes only, so a pipeline opens, but its images cannot be
    compared with those of a pipeline that has CLIP's vocabulary.
    """
    components = {"sd15": _sd15_configs, "sdxl": _sdxl_configs}[architecture]()
    for name, config in components.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2))
    for tokenizer in ("tokenizer",) if architecture == "sd15" else ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / tokenizer)
    return folder


def _sd15_configs() -> dict[str, Any]:
    widths = TINY_SD15
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": 8,
            "block_out_channels": widths.unet_levels,
            "cross_attention_dim": widths.context,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "layers_per_block": 2,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "sample_size": 64,
        },
        "vae/config.json": _vae_config(widths, sample_size=512, scaling_factor=0.18215),
        "text_encoder/config.json": _text_config(widths, 0, "CLIPTextModel", "quick_gelu"),
        "scheduler/scheduler_config.json": {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
    }


def _sdxl_configs() -> dict[str, Any]:
    widths = TINY_SDXL
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionXLPipeline",
            "feature_extractor": [None, None],
            "force_zeros_for_empty_prompt": True,
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [max(1, width // 64) for width in widths.unet_levels],
            "block_out_channels": widths.unet_levels,
            "cross_attention_dim": widths.context,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "layers_per_block": 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "projection_class_embeddings_input_dim": widths.text[-1] + 6 * 256,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
        },
        "vae/config.json": _vae_config(
            widths, sample_size=1024, scaling_factor=0.13025, force_upcast=True
        ),
        "text_encoder/config.json": _text_config(widths, 0, "CLIPTextModel", "quick_gelu"),
        "text_encoder_2/config.json": _text_config(
            widths, 1, "CLIPTextModelWithProjection", "gelu"
        ),
        "scheduler/scheduler_config.json": {
            "_class_name": "EulerDiscreteScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
    }


def _vae_config(widths: Widths, **rest: Any) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths.vae_levels,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
        **rest,
    }


def _text_config(widths: Widths, encoder: int, kind: str, activation: str) -> dict[str, Any]:
    hidden = widths.text[encoder]
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": activation,
        "hidden_size": hidden,
        "intermediate_size": hidden * 4,
        "num_attention_heads": hidden // 64,
        "num_hidden_layers": widths.text_layers[encoder],
        "projection_dim": hidden,
        "vocab_size": widths.vocabulary,
    }


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer that knows single bytes only."""
    folder.mkdir(parents=True)
    alphabet = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
