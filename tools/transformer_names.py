"""The names of a transformer's tensors in its original layout, from diffusers' names.

`make_transformer_tables` checks them: diffusers' converters must give the same names back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_sana_transformer_to_diffusers,
    convert_wan_transformer_to_diffusers,
)


def renamed(*pairs: tuple[str, str]) -> Callable[[str], str]:
    """Return the function that replaces the patterns in order."""

    def rename(name: str) -> str:
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


FLUX2 = renamed(
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

WAN = renamed(
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^condition_embedder\.image_embedder\.pos_embed", "img_emb.emb_pos"),
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

LTX = renamed(
    (r"^proj_in", "patchify_proj"),
    (r"^time_embed", "adaln_single"),
    (r"norm_([qk])", r"\1_norm"),
)

Z_IMAGE = renamed(
    (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([kq])\.", r".attention.\1_norm."),
    (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
)

LUMINA2 = renamed(
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

KREA2 = renamed(
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

_WAN_POSITIONS = {"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"}


def wan(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert Wan to diffusers' names, including the model for a first and a last frame.

    diffusers' converter does not rename the image positions of that model, so they are renamed
    here as in diffusers' script convert_wan_to_diffusers.
    """
    return convert_wan_transformer_to_diffusers(
        {_WAN_POSITIONS.get(name, name): tensor for name, tensor in checkpoint.items()}
    )


_SANA_NORMS = {
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
}
_SANA_TIME = "time_embed.emb.timestep_embedder."


def sana(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert Sana, Sana 1.5 or Sana Sprint to diffusers' names.

    diffusers' converter supports only the first Sana. The tensors that the later models add are
    renamed here as in diffusers' script convert_sana_to_diffusers.
    """
    has_norms = "blocks.0.attn.q_norm.weight" in checkpoint
    is_guided = "cfg_embedder.mlp.0.weight" in checkpoint
    layers = {name.split(".")[1] for name in checkpoint if name.startswith("blocks.")}
    own: dict[str, Any] = {}
    if has_norms:
        for layer in layers:
            for source, target in _SANA_NORMS.items():
                own[f"transformer_blocks.{layer}.{target}.weight"] = checkpoint.pop(
                    f"blocks.{layer}.{source}.weight"
                )
    if is_guided:
        for source, target in ((0, 1), (2, 2)):
            for name in ("weight", "bias"):
                own[f"time_embed.guidance_embedder.linear_{target}.{name}"] = checkpoint.pop(
                    f"cfg_embedder.mlp.{source}.{name}"
                )
    made = convert_sana_transformer_to_diffusers(checkpoint) | own
    if not is_guided:
        return made
    return {name.replace(_SANA_TIME, "time_embed.timestep_embedder."): made[name] for name in made}
