"""Tiny components of pipelines with random weights: tokenizers, encoders, VAEs, schedulers."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import transformers

from sd_loader.convert.tables.clip import VOCABULARY_FILES, vocabulary_file

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
WORDS = ["a", "fox", "over", "the", "moon", "!"]
PROMPT = " ".join(WORDS)


@cache
def clip_tokenizer() -> Any:
    """Return CLIP's tokenizer with its own vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        for name in VOCABULARY_FILES:
            (Path(folder) / name).write_bytes(vocabulary_file(name))
        return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def word_tokenizer(**options: Any) -> Any:
    """Return a tokenizer of a few words, in the form that T5 and language models use."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(f"\u2581{word}" for word in WORDS)]
    unigram = tokenizers.models.Unigram([(piece, -2.0) for piece in pieces], 2)
    tokenizer = tokenizers.Tokenizer(unigram)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        **options,
    )


def clip(*, projected: bool = False) -> Any:
    """Return a CLIP text encoder."""
    config = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=8,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


_T5 = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2,
       "feed_forward_proj": "gated-gelu"}  # fmt: skip


def t5(width: int = 8) -> Any:
    """Return T5's encoder."""
    return transformers.T5EncoderModel(transformers.T5Config(**{**_T5, "d_model": width}))


def umt5() -> Any:
    """Return UMT5's encoder."""
    return transformers.UMT5EncoderModel(transformers.UMT5Config(**_T5))


def two_clips_and_t5(width: int = 8) -> dict[str, Any]:
    """Return the text encoders that SD 3 and HiDream share, and their tokenizers."""
    return {
        "text_encoder": clip(projected=True),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(projected=True),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5(width),
        "tokenizer_3": word_tokenizer(),
    }


def language(kind: str, **config: Any) -> Any:
    """Return a tiny language model of this class of transformers."""
    sizes = {
        "vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    }  # fmt: skip
    model = getattr(transformers, kind)
    return model(model.config_class(**{**sizes, **config}))


def vae(**config: Any) -> Any:
    """Return a VAE of 16 channels, as FLUX and SD 3 have it."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=16, layers_per_block=1,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, **config,
    )  # fmt: skip


def qwen_vae() -> Any:
    """Return the VAE of Qwen-Image, which Krea 2 also has."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def flux2_vae() -> Any:
    """Return the VAE of FLUX.2."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), layers_per_block=1, latent_channels=4,
        norm_num_groups=4,
    )  # fmt: skip


def wan_vae() -> Any:
    """Return the VAE of Wan."""
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        scale_factor_spatial=2,
    )  # fmt: skip


def wan_scheduler() -> Any:
    """Return the scheduler of Wan."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def flow(**config: Any) -> Any:
    """Return the scheduler of flow-matching models."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **config)
