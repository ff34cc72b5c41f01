"""The transformers that `make_transformer_tables` makes key tables for.

Most converters of diffusers rename the tensors that they find, so their table needs the names of a
checkpoint first: `original` gives them from diffusers' names. The others ask for the names that
they want, and need only `seeds`, which show how many layers the checkpoint has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers.loaders import single_file_utils as converters

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A transformer and its converter."""

    model: type
    """diffusers' class."""

    converter: Callable[..., Mapping[str, Any]]

    configs: tuple[Config, ...]
    """Configs of its published variants, with few layers and with sizes that all differ.

    A converter may contain a width as a number; such a width stays the published one.
    """

    sizes: Mapping[str, int]
    """Names of the sizes in the configs."""

    original: Callable[[str], str] | None = None
    """Returns the checkpoint's name of a tensor of diffusers. None if the converter has names."""

    seeds: Callable[[Config], list[str]] = lambda _: []
    """Names that show a converter which layers there are."""

    unused: tuple[str, ...] = ()
    """Further names in the checkpoint, which the model does not use."""

    constants: frozenset[int] = field(default=frozenset({256}))
    """Sizes above 16 that are the same in every model: 256 frequencies of a time step."""


def _renamed(*pairs: tuple[str, str]) -> Callable[[str], str]:
    """Return the function that replaces the patterns in order."""

    def rename(name: str) -> str:
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


def _unchanged(checkpoint: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
    return checkpoint


def _layers(**counts: int) -> list[str]:
    return [f"{stack}.{number}." for stack, count in counts.items() for number in range(count)]


def _sd3_seeds(config: Config) -> list[str]:
    return [
        *_layers(joint_blocks=config["num_layers"]),
        *(f"joint_blocks.{number}.attn2." for number in config.get("dual_attention_layers", ())),
        *(["ln_q"] if config.get("qk_norm") else []),
    ]


def _flux_seeds(config: Config) -> list[str]:
    blocks = _layers(double_blocks=config["num_layers"], single_blocks=config["num_single_layers"])
    return [*blocks, *(["guidance"] if config.get("guidance_embeds") else [])]


def _chroma_seeds(config: Config) -> list[str]:
    approximator = "distilled_guidance_layer.layers"
    return _flux_seeds(config) + _layers(**{approximator: config["approximator_layers"]})


def _auraflow_seeds(config: Config) -> list[str]:
    return _layers(
        double_layers=config["num_mmdit_layers"], single_layers=config["num_single_dit_layers"]
    )


_FLUX2 = _renamed(
    (r"^x_embedder", "img_in"),
    (r"^context_embedder", "txt_in"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"_modulation(_img|_txt)?\.linear", r"_modulation\1.lin"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.attn\.to_qkv_mlp_proj", ".linear1"),
    (r"^(single_blocks\.\d+)\.attn\.to_out", r"\1.linear2"),
    (r"^(single_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"^(single_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"\.attn\.to_[qkv]\.", ".img_attn.qkv."),
    (r"\.attn\.add_[qkv]_proj\.", ".txt_attn.qkv."),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0", ".img_attn.proj"),
    (r"\.attn\.to_add_out", ".txt_attn.proj"),
    (r"\.ff\.linear_in", ".img_mlp.0"),
    (r"\.ff\.linear_out", ".img_mlp.2"),
    (r"\.ff_context\.linear_in", ".txt_mlp.0"),
    (r"\.ff_context\.linear_out", ".txt_mlp.2"),
)

_WAN = _renamed(
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"scale_shift_table", "modulation"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"\.norm2\.", ".norm_x."),
    (r"\.norm3\.", ".norm2."),
    (r"\.norm_x\.", ".norm3."),
)

_LTX = _renamed(
    (r"^proj_in", "patchify_proj"),
    (r"^time_embed", "adaln_single"),
    (r"norm_([qk])", r"\1_norm"),
)

_Z_IMAGE = _renamed(
    (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([kq])\.", r".attention.\1_norm."),
    (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
)

_LUMINA2 = _renamed(
    (r"^time_caption_embed\.caption_embedder", "cap_embedder"),
    (r"^time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
    (r"^norm_out\.linear_2", "final_layer.linear"),
    (r"^(context_refiner\.\d+)\.norm1\.", r"\1.attention_norm1."),
    (r"\.norm1\.norm\.", ".attention_norm1."),
    (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
    (r"\.norm2\.", ".attention_norm2."),
    (r"\.attn\.to_[qkv]\.", ".attention.qkv."),
    (r"\.attn\.", ".attention."),
    (r"\.to_out\.0\.", ".out."),
    (r"norm_([kq])", r"\1_norm"),
    (r"linear_([123])\b", r"w\1"),
)

_KREA2 = _renamed(
    (r"^img_in\.", "first."),
    (r"^time_embed\.linear_1\.", "tmlp.0."),
    (r"^time_embed\.linear_2\.", "tmlp.2."),
    (r"^time_mod_proj\.", "tproj.1."),
    (r"^txt_in\.norm\.weight", "txtmlp.0.scale"),
    (r"^txt_in\.linear_1\.", "txtmlp.1."),
    (r"^txt_in\.linear_2\.", "txtmlp.3."),
    (r"^text_fusion\.", "txtfusion."),
    (r"^transformer_blocks\.", "blocks."),
    (r"^final_layer\.linear\.", "last.linear."),
    (r"^final_layer\.norm\.weight", "last.norm.scale"),
    (r"^final_layer\.scale_shift_table", "last.modulation.lin"),
    (r"\.attn\.to_out\.0\.", ".attn.wo."),
    (r"\.attn\.to_gate\.", ".attn.gate."),
    (r"\.attn\.to_([qkv])\.", r".attn.w\1."),
    (r"\.attn\.norm_([qk])\.weight", r".attn.qknorm.\1norm.scale"),
    (r"\.ff\.", ".mlp."),
    (r"\.norm1\.weight", ".prenorm.scale"),
    (r"\.norm2\.weight", ".postnorm.scale"),
    (r"\.scale_shift_table", ".mod.lin"),
)

_SD3 = {
    "sample_size": 16,
    "patch_size": 2,
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
    "outputs": 4 * 19,
    "context": 4111,
    "mlp": 13313,
    "image": 1291,
}

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
            "outputs": 4 * 17,
            "inputs": 15,
        },
        seeds=_sd3_seeds,
    ),
    "flux": Family(
        diffusers.FluxTransformer2DModel,
        converters.convert_flux_transformer_checkpoint_to_diffusers,
        (_FLUX, _FLUX | {"guidance_embeds": True}),
        _FLUX_SIZES | {"pooled": 769},
        seeds=_flux_seeds,
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
                "guidance_embeds": guidance,
            }
            for guidance in (False, True)
        ),
        {"inner": 2560, "head": 128, "context": 4111, "inputs": 131, "outputs": 137},
        original=_FLUX2,
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
        seeds=_chroma_seeds,
    ),
    "qwen-image": Family(
        diffusers.QwenImageTransformer2DModel,
        _unchanged,
        (
            {
                "in_channels": 61,
                "out_channels": 19,
                "num_layers": 3,
                "num_attention_heads": 20,
                "joint_attention_dim": 3583,
            },
        ),
        {"inner": 2560, "head": 128, "context": 3583, "inputs": 61, "outputs": 4 * 19},
        original=_renamed(),
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
        {"inner": 2560, "head": 128, "context": 2549, "inputs": 4 * 17, "mlp": 6826},
        original=_Z_IMAGE,
        unused=("norm_final.weight",),
        constants=frozenset({256, 1024}),
    ),
    "lumina2": Family(
        diffusers.Lumina2Transformer2DModel,
        converters.convert_lumina2_to_diffusers,
        (
            {
                "in_channels": 17,
                "num_layers": 3,
                "num_refiner_layers": 2,
                "cap_feat_dim": 1021,
            },
        ),
        {
            "inner": 2304,
            "head": 96,
            "keys": 768,
            "context": 1021,
            "inputs": 4 * 17,
            "mlp": 4 * 2304,
        },
        original=_LUMINA2,
        unused=("norm_final.weight",),
        constants=frozenset({256, 1024}),
    ),
    "sana": Family(
        diffusers.SanaTransformer2DModel,
        converters.convert_sana_transformer_to_diffusers,
        (
            {
                "in_channels": 33,
                "out_channels": 37,
                "num_layers": 3,
                "num_attention_heads": 20,
                "attention_head_dim": 64,
                "num_cross_attention_heads": 10,
                "cross_attention_head_dim": 128,
                "cross_attention_dim": 1280,
                "caption_channels": 2309,
                "mlp_ratio": 2.7,
            },
        ),
        {
            "inner": 1280,
            "context": 2309,
            "inputs": 33,
            "outputs": 37,
            "mlp": 3456,
        },
        seeds=lambda config: _layers(blocks=config["num_layers"]),
        unused=("pos_embed", "y_embedder.y_embedding"),
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
        seeds=_auraflow_seeds,
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
        },
        original=_renamed(),
    ),
    "wan": Family(
        diffusers.WanTransformer3DModel,
        converters.convert_wan_transformer_to_diffusers,
        (
            _WAN_CONFIG,
            _WAN_CONFIG | {"image_dim": 1291, "added_kv_proj_dim": 1280},
        ),
        _WAN_SIZES,
        original=_WAN,
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
                "cross_attention_dim": 1280,
                "caption_channels": 4111,
            },
        ),
        {"inner": 1280, "context": 4111, "inputs": 131, "outputs": 137},
        original=_LTX,
    ),
    "krea2": Family(
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
                "text_num_attention_heads": 9,
                "text_num_key_value_heads": 9,
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
            "inputs": 61,
        },
        original=_KREA2,
    ),
}
"""The families by their names."""
