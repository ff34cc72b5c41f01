"""The tensors of a small LoRA of Stable Diffusion 1, without torch."""

from __future__ import annotations

from devkit.layers import Shapes

_LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
LORA: Shapes = {f"{_LAYER}.lora_down.weight": (4, 768), f"{_LAYER}.lora_up.weight": (1280, 4)}
