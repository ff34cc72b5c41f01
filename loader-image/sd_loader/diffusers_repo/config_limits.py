"""Limits for the values of config keys, in addition to the types that the classes document.

The name of an entry is `Class.key`, or `key` for all other classes with this key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

MOST = 65_536
MOST_LAYERS = 64
ABOVE_ZERO = 2**-32
"""The least value of a number that must not be 0."""
MOST_ITEMS = 16
"""Maximum length of a list of whole numbers or names. No model has as many levels."""
LONG_LISTS = frozenset({"disable_corrector", "dual_attention_layers"})
"""Keys whose lists may be longer than MOST_ITEMS: they list sampling steps or layers."""

NUMBERS: Mapping[str, tuple[float, float]] = {
    # Sizes
    **dict.fromkeys(
        (
            "attention_head_dim",
            "block_out_channels",
            "conditioning_channels",
            "conditioning_embedding_out_channels",
            "cross_attention_dim",
            "hidden_size",
            "in_channels",
            "intermediate_size",
            "latent_channels",
            "max_position_embeddings",
            "norm_num_groups",
            "num_attention_heads",
            "out_channels",
            "projection_dim",
            "sample_size",
            # ControlNets of FLUX.1 and SD 3
            "axes_dims_rope",
            "caption_projection_dim",
            "conditioning_embedding_channels",
            "joint_attention_dim",
            "num_mode",
            "patch_size",
            "pooled_projection_dim",
            "pos_embed_max_size",
        ),
        (1, MOST),
    ),
    "vocab_size": (1, 1 << 20),
    "num_hidden_layers": (1, MOST_LAYERS),
    "layers_per_block": (0, MOST_LAYERS),
    "transformer_layers_per_block": (0, MOST_LAYERS),
    "reverse_transformer_layers_per_block": (0, MOST_LAYERS),
    "downsample_padding": (0, 1),
    "freq_shift": (0, 1),
    # Divisors and factors
    "mid_block_scale_factor": (ABOVE_ZERO, MOST),
    "resnet_out_scale_factor": (ABOVE_ZERO, MOST),
    "scaling_factor": (ABOVE_ZERO, MOST),
    "latents_std": (ABOVE_ZERO, MOST),
    "latents_mean": (-MOST, MOST),
    "shift_factor": (-MOST, MOST),
    "dropout": (0, 1),
    "attention_dropout": (0, 1),
    # Schedulers. Some compare each pair of training steps, so memory grows with their square.
    "num_train_timesteps": (1, 4096),
    "original_inference_steps": (1, 4096),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "trained_betas": (0, 1),
    "dynamic_thresholding_ratio": (0, 1),
    "lambda_min_clipped": (-math.inf, MOST),
    "noise_sampler_seed": (0, 2**63 - 1),
    "rho": (1, 100),
    "solver_order": (1, 3),
    "predictor_order": (1, 4),
    "corrector_order": (0, 4),
}
"""The least and the greatest value of a number, and of each number of a list. Numbers without an
entry may be 0 to 65,536."""

_DOWN, _UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
NAMES: Mapping[str, tuple[str, ...]] = {
    "AutoencoderKL.down_block_types": ("DownEncoderBlock2D",),
    "AutoencoderKL.up_block_types": ("UpDecoderBlock2D",),
    "ControlNetModel.class_embed_type": ("identity", "projection", "timestep"),
    "addition_embed_type": ("text_time",),
    "attention_type": ("default",),
    "class_embed_type": ("identity", "projection", "simple_projection", "timestep"),
    "controlnet_conditioning_channel_order": ("bgr", "rgb"),
    "down_block_types": _DOWN,
    "encoder_hid_dim_type": ("text_proj",),
    "SD3ControlNetModel.pos_embed_type": ("sincos",),
    "SD3ControlNetModel.qk_norm": ("rms_norm",),
    "hidden_act": ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional",),
    "up_block_types": _UP,
}
"""The values of strings whose values the generated list does not state."""

NEVER_NULL = frozenset(
    {
        "CLIPTextModelWithProjection.projection_dim",
        "ControlNetModel.conditioning_embedding_out_channels",
        "ControlNetModel.mid_block_type",
        "eos_token_id",
        "initializer_factor",
        "layer_norm_eps",
        "norm_num_groups",
        "only_cross_attention",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    }
)
"""Keys that must not be null, even if their class documents null, or if they are booleans. For all
other booleans, null means false."""

ONLY: Mapping[str, object] = {
    "UNet2DConditionModel.num_attention_heads": None,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
}
"""Keys with one value in every pipeline that the loader supports."""


def limit(table: Mapping[str, _Value], class_name: str, key: str) -> _Value | None:
    """The entry of a key of a class. None if the table has no such entry."""
    return table.get(f"{class_name}.{key}", table.get(key))
