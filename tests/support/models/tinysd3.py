"""A tiny Stable Diffusion 3.5 in the original layout as one file, and its configs.

It has the 38 blocks that identify the large version, at a small width. The file includes text
encoders and VAE under the prefixes of the published all-in-one files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from devkit.layers import Shapes, under
from devkit.ldm_layouts import TINY_SD15, TINY_SDXL, vae_shapes
from devkit.sd3_layouts import SD3_LATENTS, SD3Widths, mmdit_shapes
from tests.support.models.checkpoints import Checkpoint, random_tensors, write_tokenizer
from tests.support.models.encoders import (
    CLIP_G,
    CLIP_L,
    T5,
    T5_VOCABULARY,
    VOCABULARY,
    clip_shapes,
    t5_shapes,
)

REPO = "stabilityai/stable-diffusion-3.5-large"
BLOCKS = 38
WIDTH = 64


def tiny_sd35(dtype: torch.dtype = torch.float16) -> Checkpoint:
    """Return all tensors with random numbers."""
    return random_tensors(sd35_shapes(), dtype)


def sd35_shapes() -> Shapes:
    """Return the names and shapes of all tensors."""
    widths = SD3Widths(BLOCKS, 0, heads=1, head=WIDTH, positions=16, others=TINY_SDXL, t5=T5)
    return {
        **under("model.diffusion_model.", mmdit_shapes(widths)),
        **under("first_stage_model.", vae_shapes(TINY_SD15, SD3_LATENTS)),
        **under("text_encoders.clip_l.transformer.", clip_shapes(CLIP_L)),
        **under("text_encoders.clip_g.transformer.", clip_shapes(CLIP_G, projected=True)),
        **under("text_encoders.t5xxl.transformer.", t5_shapes()),
    }


def write_configs(folder: Path) -> Path:
    """Write the configs and tokenizers as the published model's repo has them."""
    for name, config in _configs().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2))
    for tokenizer in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / tokenizer)
    write_t5_tokenizer(folder / "tokenizer_3")
    return folder


def write_t5_tokenizer(folder: Path) -> None:
    """Write a tokenizer that knows only letters, in the form of T5's tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": 512,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _configs() -> dict[str, Any]:
    clip = {
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "num_hidden_layers": 1,
        "vocab_size": VOCABULARY,
        "architectures": ["CLIPTextModelWithProjection"],
    }
    return {
        "model_index.json": {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": "0.30.3.dev0",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "shift": 3.0,
        },
        "transformer/config.json": {
            "_class_name": "SD3Transformer2DModel",
            "attention_head_dim": 64,
            "caption_projection_dim": WIDTH,
            "in_channels": SD3_LATENTS,
            "joint_attention_dim": T5,
            "num_attention_heads": 1,
            "num_layers": BLOCKS,
            "out_channels": SD3_LATENTS,
            "patch_size": 2,
            "pooled_projection_dim": CLIP_L + CLIP_G,
            "pos_embed_max_size": 16,
            "qk_norm": "rms_norm",
            "sample_size": 16,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": list(TINY_SD15.vae_levels),
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": SD3_LATENTS,
            "layers_per_block": 2,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
        },
        "text_encoder/config.json": {
            **clip,
            "hidden_size": CLIP_L,
            "intermediate_size": 4 * CLIP_L,
            "num_attention_heads": 1,
            "projection_dim": CLIP_L,
        },
        "text_encoder_2/config.json": {
            **clip,
            "hidden_size": CLIP_G,
            "intermediate_size": 4 * CLIP_G,
            "num_attention_heads": 2,
            "projection_dim": CLIP_G,
        },
        "text_encoder_3/config.json": {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "d_ff": 64,
            "d_kv": 64,
            "d_model": T5,
            "feed_forward_proj": "gated-gelu",
            "num_heads": 1,
            "num_layers": 1,
            "vocab_size": T5_VOCABULARY,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    }
