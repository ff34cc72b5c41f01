"""Tiny pipelines with random weights: newer families, and families whose input is not only text."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests.support.models import tinycomponents as tiny

Pipeline = Any


def ltx() -> Pipeline:
    """Return LTX-Video, whose VAE class no other family has."""
    return diffusers.LTXPipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.t5(),
        tokenizer=tiny.word_tokenizer(),
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, num_layers=1, caption_channels=8,
        ),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1), spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False), decoder_inject_noise=(False,) * 3,
            downsample_type=("conv", "conv"), upsample_residual=(False, False),
            upsample_factor=(1, 1), patch_size=1,
        ),
    )  # fmt: skip


def sana() -> Pipeline:
    """Return Sana, whose VAE has blocks of different types."""
    return diffusers.SanaPipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.language("Gemma2Model"),
        tokenizer=tiny.word_tokenizer(),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
            attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
            cross_attention_dim=8, caption_channels=8,
        ),
        vae=diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            downsample_block_type="conv", upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
    )  # fmt: skip


def hidream() -> Pipeline:
    """Return HiDream, with four text encoders."""
    return diffusers.HiDreamImagePipeline(
        scheduler=tiny.flow(),
        **tiny.two_clips_and_t5(),
        text_encoder_4=tiny.language("LlamaForCausalLM", num_hidden_layers=2),
        tokenizer_4=tiny.word_tokenizer(),
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=8, num_attention_heads=2, caption_channels=[8, 8],
            text_emb_dim=16, axes_dims_rope=(4, 2, 2), max_resolution=(64, 64), llama_layers=[0, 1],
        ),
        vae=tiny.vae(),
    )  # fmt: skip


def _flux2_transformer(*, guided: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guided,
    )  # fmt: skip


def flux2() -> Pipeline:
    """Return FLUX.2 dev, whose encoder also reads pictures.

    The tokenizer is a plain one: the processor of the published model needs torchvision.
    """
    text = {"model_type": "mistral", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 4}  # fmt: skip
    vision = {"model_type": "pixtral", "hidden_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 8, "image_size": 12,
              "patch_size": 6}  # fmt: skip
    config = transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=1
    )
    return diffusers.Flux2Pipeline(
        scheduler=tiny.flow(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=tiny.word_tokenizer(chat_template=tiny.TEMPLATE),
        transformer=_flux2_transformer(guided=True),
        vae=tiny.flux2_vae(),
    )


def flux2_klein() -> Pipeline:
    """Return FLUX.2 Klein, with a language model as encoder, and `is_distilled` in its index."""
    return diffusers.Flux2KleinPipeline(
        scheduler=tiny.flow(),
        text_encoder=tiny.language("Qwen3ForCausalLM"),
        tokenizer=tiny.word_tokenizer(chat_template=tiny.TEMPLATE),
        transformer=_flux2_transformer(guided=False),
        vae=tiny.flux2_vae(),
        is_distilled=True,
    )


def krea2() -> Pipeline:
    """Return Krea 2, one of whose options is a list."""
    text = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
              "out_hidden_size": 16, "deepstack_visual_indexes": [0]}  # fmt: skip
    return diffusers.Krea2Pipeline(
        scheduler=tiny.flow(use_dynamic_shifting=True),
        text_encoder=transformers.Qwen3VLModel(
            transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=tiny.word_tokenizer(chat_template=tiny.TEMPLATE),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=16, timestep_embed_dim=8,
            text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
            text_num_key_value_heads=1, text_intermediate_size=16, num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
        ),
        vae=tiny.qwen_vae(),
        text_encoder_select_layers=(0, 1, 2),
    )  # fmt: skip


def wan_image_to_video() -> Pipeline:
    """Return Wan 2.1 for images to videos, with an image encoder and an image processor."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, intermediate_size=8, patch_size=4,
    )  # fmt: skip
    return diffusers.WanImageToVideoPipeline(
        scheduler=tiny.wan_scheduler(),
        text_encoder=tiny.umt5(),
        tokenizer=tiny.word_tokenizer(),
        image_encoder=transformers.CLIPVisionModel(vision),
        image_processor=transformers.CLIPImageProcessor(crop_size=8, size={"shortest_edge": 8}),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=8, in_channels=36,
            out_channels=16, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=1, image_dim=8,
            added_kv_proj_dim=16,
        ),
        vae=tiny.wan_vae(),
    )  # fmt: skip
