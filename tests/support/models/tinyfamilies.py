"""Tiny pipelines of other families than Stable Diffusion, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.support.models import tinycomponents as tiny
from tests.support.models import tinynewerfamilies as newer

Pipeline = Any


def flux() -> Pipeline:
    """Return FLUX.1 dev."""
    return diffusers.FluxPipeline(
        scheduler=tiny.flow(use_dynamic_shifting=True),
        text_encoder=tiny.clip(),
        tokenizer=tiny.clip_tokenizer(),
        text_encoder_2=tiny.t5(),
        tokenizer_2=tiny.word_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
            axes_dims_rope=(2, 2, 4), guidance_embeds=True,
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def sd3() -> Pipeline:
    """Return Stable Diffusion 3.5."""
    return diffusers.StableDiffusion3Pipeline(
        scheduler=tiny.flow(),
        **tiny.two_clips_and_t5(16),
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
            pooled_projection_dim=16, out_channels=16, dual_attention_layers=(0,),
            qk_norm="rms_norm", pos_embed_max_size=8,
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def _wan_transformer() -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=8, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=256, ffn_dim=8, num_layers=1,
    )  # fmt: skip


def wan() -> Pipeline:
    """Return Wan 2.2 with two transformers."""
    return diffusers.WanPipeline(
        scheduler=tiny.wan_scheduler(),
        text_encoder=tiny.umt5(),
        tokenizer=tiny.word_tokenizer(),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(),
        vae=tiny.wan_vae(),
        boundary_ratio=0.875,
    )  # fmt: skip


def chroma() -> Pipeline:
    """Return Chroma, which has no CLIP."""
    return diffusers.ChromaPipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.t5(),
        tokenizer=tiny.word_tokenizer(),
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(2, 2, 4),
            approximator_hidden_dim=8, approximator_layers=1, approximator_num_channels=8,
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def qwen_image() -> Pipeline:
    """Return Qwen-Image, whose encoder has a nested config."""
    text = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
              "out_hidden_size": 16}  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return diffusers.QwenImagePipeline(
        scheduler=tiny.flow(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tiny.word_tokenizer(chat_template=tiny.TEMPLATE),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
        ),
        vae=tiny.qwen_vae(),
    )  # fmt: skip


def z_image() -> Pipeline:
    """Return Z-Image, whose encoder is a language model without a head."""
    return diffusers.ZImagePipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.language("Qwen3Model"),
        tokenizer=tiny.word_tokenizer(chat_template=tiny.TEMPLATE),
        transformer=diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=16, n_layers=1,
            n_refiner_layers=1, n_heads=2, n_kv_heads=1, cap_feat_dim=8, axes_dims=[2, 2, 4],
            axes_lens=[128, 32, 32],
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def lumina2() -> Pipeline:
    """Return Lumina 2, whose encoder's class is not in the pipeline's signature."""
    return diffusers.Lumina2Pipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.language("Gemma2Model"),
        tokenizer=tiny.word_tokenizer(),
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=16, hidden_size=24, num_layers=1,
            num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=4,
            axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=8,
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def aura_flow() -> Pipeline:
    """Return AuraFlow, with its encoder of UMT5."""
    return diffusers.AuraFlowPipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.umt5(),
        tokenizer=tiny.word_tokenizer(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, caption_projection_dim=16, out_channels=4,
            pos_embed_max_size=16,
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def pixart() -> Pipeline:
    """Return PixArt-Sigma, with a scheduler of Stable Diffusion."""
    return diffusers.PixArtSigmaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        text_encoder=tiny.t5(),
        tokenizer=tiny.word_tokenizer(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8,
            num_attention_heads=2, caption_channels=8, in_channels=4, out_channels=8,
            cross_attention_dim=16, use_additional_conditions=False,
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def kandinsky() -> Pipeline:
    """Return the decoder of Kandinsky 2.2, with a UNet of other blocks than SD's."""
    return diffusers.KandinskyV22Pipeline(
        scheduler=diffusers.DDPMScheduler(),
        unet=diffusers.UNet2DConditionModel(
            in_channels=4, out_channels=8, addition_embed_type="image", layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=(8, 16),
            norm_num_groups=4, encoder_hid_dim=8, encoder_hid_dim_type="image_proj",
            cross_attention_dim=8, attention_head_dim=4, resnet_time_scale_shift="scale_shift",
        ),
        movq=diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
                               num_vq_embeddings=8, vq_embed_dim=4),
    )  # fmt: skip


FAMILIES: Mapping[str, tuple[str, Callable[[], Pipeline]]] = {
    "flux": ("FLUX.1", flux),
    "sd-3": ("Stable Diffusion 3.5", sd3),
    "wan": ("Wan 2.2", wan),
    "chroma": ("Chroma", chroma),
    "qwen-image": ("Qwen-Image", qwen_image),
    "z-image": ("Z-Image", z_image),
    "lumina2": ("Lumina 2", lumina2),
    "auraflow": ("AuraFlow", aura_flow),
    "pixart": ("PixArt-Sigma", pixart),
    "kandinsky": ("Kandinsky 2.2", kandinsky),
    "ltx": ("LTX-Video", newer.ltx),
    "sana": ("Sana", newer.sana),
    "hidream": ("HiDream", newer.hidream),
    "flux2": ("FLUX.2 dev", newer.flux2),
    "flux2-klein": ("FLUX.2 Klein", newer.flux2_klein),
    "krea2": ("Krea 2", newer.krea2),
    "wan-i2v": ("Wan, image to video", newer.wan_image_to_video),
}
"""The families by name: as users know them, and the function that makes a pipeline."""


@cache
def pipeline(family: str) -> Pipeline:
    """Return the pipeline of a family, with the same random weights each time."""
    torch.manual_seed(0)
    return FAMILIES[family][1]()


def save_repo(folder: Path, family: str, *, shard_size: str = "10GB") -> Path:
    """Save the pipeline of a family as a repo."""
    pipeline(family).save_pretrained(folder, max_shard_size=shard_size)
    return folder
