"""The transformers that `make_transformer_tables` makes key tables for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.loaders import single_file_utils as converters

from tools.transformer_family import (
    Family,
    auraflow_seeds,
    chroma_seeds,
    flux_seeds,
    sana_seeds,
    sd3_seeds,
)
from tools.transformer_names import FLUX2, KREA2, LTX, LUMINA2, WAN, Z_IMAGE, renamed, sana, wan


def _unchanged(checkpoint: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
    return checkpoint


_SD3 = {
    "sample_size": 16,
    "patch_size": 7,
    "in_channels": 15,
    "out_channels": 17,
    "num_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 28,
    "caption_projection_dim": 28 * 64,
    "joint_attention_dim": 4111,
    "pooled_projection_dim": 2053,
    "pos_embed_max_size": 20,
}
_FLUX = {
    "in_channels": 61,
    "out_channels": 59,
    "num_layers": 3,
    "num_single_layers": 3,
    "joint_attention_dim": 4111,
    "pooled_projection_dim": 769,
}
_FLUX_SIZES = {"inner": 3072, "head": 128, "context": 4111, "inputs": 61, "outputs": 59}
_WAN_CONFIG = {
    "patch_size": (7, 5, 3),
    "freq_dim": 251,
    "num_layers": 3,
    "num_attention_heads": 10,
    "in_channels": 37,
    "out_channels": 19,
    "text_dim": 4111,
    "ffn_dim": 13313,
}
_WAN_SIZES = {
    "inner": 1280,
    "inputs": 37,
    "patch_0": 7,
    "patch_1": 5,
    "patch_2": 3,
    "outputs": 7 * 5 * 3 * 19,
    "time": 251,
    "context": 4111,
    "mlp": 13313,
    "image": 1291,
    "image_keys": 1277,
    "image_positions": 514,
}
_WAN_IMAGE = {"image_dim": 1291, "added_kv_proj_dim": 1277}

_QWEN_IMAGE = {
    "in_channels": 61,
    "out_channels": 19,
    "num_layers": 3,
    "num_attention_heads": 20,
    "joint_attention_dim": 3583,
}
_SANA = {
    "in_channels": 33,
    "out_channels": 37,
    "patch_size": 7,
    "num_layers": 3,
    "num_attention_heads": 20,
    "attention_head_dim": 64,
    "num_cross_attention_heads": 10,
    "cross_attention_head_dim": 92,
    "cross_attention_dim": 1151,
    "caption_channels": 2309,
    "mlp_ratio": 2.7,
}
_SANA_NORMS = {"qk_norm": "rms_norm_across_heads"}

FAMILIES = {
    "sd-3": Family(
        diffusers.SD3Transformer2DModel,
        converters.convert_sd3_transformer_checkpoint_to_diffusers,
        (
            _SD3,
            _SD3 | {"qk_norm": "rms_norm"},
            _SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 2)},
        ),
        {
            "inner": 28 * 64,
            "head": 64,
            "context": 4111,
            "pooled": 2053,
            "positions": 400,
            "patch": 7,
            "outputs": 7 * 7 * 17,
            "inputs": 15,
        },
        seeds=sd3_seeds,
    ),
    "flux": Family(
        diffusers.FluxTransformer2DModel,
        converters.convert_flux_transformer_checkpoint_to_diffusers,
        (_FLUX, _FLUX | {"guidance_embeds": True}),
        _FLUX_SIZES | {"pooled": 769},
        seeds=flux_seeds,
    ),
    "flux2": Family(
        diffusers.Flux2Transformer2DModel,
        converters.convert_flux2_transformer_checkpoint_to_diffusers,
        tuple(
            {
                "in_channels": 131,
                "out_channels": 137,
                "num_layers": 3,
                "num_single_layers": 3,
                "num_attention_heads": 20,
                "joint_attention_dim": 4111,
                "timestep_guidance_channels": 251,
                "mlp_ratio": 2.7,
                "guidance_embeds": guidance,
            }
            for guidance in (False, True)
        ),
        {
            "inner": 2560,
            "head": 128,
            "context": 4111,
            "inputs": 131,
            "outputs": 137,
            "time": 251,
            "mlp": 6912,
            "3*inner+2*mlp": 3 * 2560 + 2 * 6912,
            "inner+mlp": 2560 + 6912,
        },
        original=FLUX2,
    ),
    "chroma": Family(
        diffusers.ChromaTransformer2DModel,
        converters.convert_chroma_transformer_checkpoint_to_diffusers,
        (
            {key: value for key, value in _FLUX.items() if key != "pooled_projection_dim"}
            | {
                "approximator_num_channels": 67,
                "approximator_hidden_dim": 5023,
                "approximator_layers": 3,
            },
        ),
        _FLUX_SIZES | {"approximator": 5023, "approximator_inputs": 67},
        seeds=chroma_seeds,
    ),
    "qwen-image": Family(
        diffusers.QwenImageTransformer2DModel,
        _unchanged,
        (_QWEN_IMAGE, _QWEN_IMAGE | {"use_additional_t_cond": True}),
        {"inner": 2560, "head": 128, "context": 3583, "inputs": 61, "outputs": 4 * 19},
        original=renamed(),
    ),
    "z-image": Family(
        diffusers.ZImageTransformer2DModel,
        converters.convert_z_image_transformer_checkpoint_to_diffusers,
        (
            {
                "in_channels": 17,
                "dim": 2560,
                "n_layers": 3,
                "n_refiner_layers": 3,
                "n_heads": 20,
                "n_kv_heads": 20,
                "cap_feat_dim": 2549,
            },
        ),
        {
            "inner": 2560,
            "head": 128,
            "context": 2549,
            "inputs": 4 * 17,
            "mlp": 6826,
            "time": 256,
        },
        original=Z_IMAGE,
        unused=("norm_final.weight",),
        constants=frozenset({1024}),
        exceptions={"t_embedder.mlp.0.weight": "1024 256"},
    ),
    "lumina2": Family(
        diffusers.Lumina2Transformer2DModel,
        converters.convert_lumina2_to_diffusers,
        (
            {
                "in_channels": 17,
                "out_channels": 19,
                "num_layers": 3,
                "num_refiner_layers": 2,
                "cap_feat_dim": 1021,
                "ffn_dim_multiplier": 0.7,
            },
        ),
        {
            "inner": 2304,
            "head": 96,
            "keys": 768,
            "context": 1021,
            "inputs": 4 * 17,
            "outputs": 4 * 19,
            "mlp": 6656,
            "time": 1024,
            "4*inner": 4 * 2304,
        },
        original=LUMINA2,
        unused=("norm_final.weight",),
        ops={"rows 0-3 of 5": "queries", "rows 3-4 of 5": "keys", "rows 4-5 of 5": "values"},
    ),
    "sana": Family(
        diffusers.SanaTransformer2DModel,
        sana,
        (_SANA, _SANA | _SANA_NORMS, _SANA | _SANA_NORMS | {"guidance_embeds": True}),
        {
            "inner": 1280,
            "context": 2309,
            "inputs": 33,
            "patch": 7,
            "outputs": 7 * 7 * 37,
            "mlp": 3456,
            "cross": 920,
            "cross_context": 1151,
        },
        seeds=sana_seeds,
        unused=(
            "pos_embed",
            "y_embedder.y_embedding",
            "logvar_linear.weight",
            "logvar_linear.bias",
        ),
    ),
    "auraflow": Family(
        diffusers.AuraFlowTransformer2DModel,
        converters.convert_auraflow_transformer_checkpoint_to_diffusers,
        (
            {
                "in_channels": 5,
                "out_channels": 7,
                "num_mmdit_layers": 3,
                "num_single_dit_layers": 3,
                "num_attention_heads": 10,
                "joint_attention_dim": 2053,
                "caption_projection_dim": 2560,
                "pos_embed_max_size": 1009,
            },
        ),
        {
            "inner": 2560,
            "context": 2053,
            "positions": 1009,
            "inputs": 4 * 5,
            "outputs": 4 * 7,
            "mlp": 6912,
        },
        seeds=auraflow_seeds,
    ),
    "hidream": Family(
        diffusers.HiDreamImageTransformer2DModel,
        converters.convert_hidream_transformer_to_diffusers,
        (
            {
                "patch_size": 2,
                "in_channels": 17,
                "out_channels": 19,
                "num_layers": 3,
                "num_single_layers": 3,
                "attention_head_dim": 128,
                "num_attention_heads": 20,
                "caption_channels": [4111, 4093],
                "text_emb_dim": 2053,
                "axes_dims_rope": [64, 32, 32],
                "max_resolution": [128, 128],
                "llama_layers": [0, 1, 2],
            },
        ),
        {
            "inner": 2560,
            "context": 4111,
            "context_2": 4093,
            "pooled": 2053,
            "inputs": 4 * 17,
            "outputs": 4 * 19,
            "mlp": 6912,
            "shared_mlp": 3584,
            "experts": 4,
        },
        original=renamed(),
    ),
    "wan": Family(
        diffusers.WanTransformer3DModel,
        wan,
        (
            _WAN_CONFIG,
            _WAN_CONFIG | _WAN_IMAGE,
            _WAN_CONFIG | _WAN_IMAGE | {"pos_embed_seq_len": 514},
        ),
        _WAN_SIZES,
        original=WAN,
    ),
    "ltx": Family(
        diffusers.LTXVideoTransformer3DModel,
        converters.convert_ltx_transformer_checkpoint_to_diffusers,
        (
            {
                "in_channels": 131,
                "out_channels": 137,
                "num_layers": 3,
                "num_attention_heads": 20,
                "cross_attention_dim": 1152,
                "caption_channels": 4111,
            },
        ),
        {"inner": 1280, "context": 4111, "cross_context": 1152, "inputs": 131, "outputs": 137},
        original=LTX,
    ),
    "krea-2": Family(
        diffusers.Krea2Transformer2DModel,
        converters.convert_krea2_transformer_checkpoint_to_diffusers,
        (
            {
                "in_channels": 61,
                "num_layers": 3,
                "num_attention_heads": 20,
                "num_key_value_heads": 5,
                "intermediate_size": 16381,
                "text_hidden_dim": 1152,
                "num_text_layers": 13,
                "text_num_attention_heads": 12,
                "text_num_key_value_heads": 3,
                "timestep_embed_dim": 251,
                "text_intermediate_size": 6911,
                "num_layerwise_text_blocks": 2,
                "num_refiner_text_blocks": 2,
            },
        ),
        {
            "inner": 2560,
            "head": 128,
            "keys": 640,
            "mlp": 16381,
            "context": 1152,
            "text_layers": 13,
            "text_mlp": 6911,
            "text_head": 96,
            "text_keys": 288,
            "time": 251,
            "inputs": 61,
        },
        original=KREA2,
    ),
}
"""The families by their names."""
