"""Writes tiny models in the original layouts with numpy, because the demo has no torch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from devkit.layers import Shapes
from devkit.ldm_layouts import TINY_SD15, TINY_SDXL, sd15_shapes

SMALLEST_SD15 = replace(TINY_SD15, architecture="bk-tiny", text_layers=(1,))
SMALLEST_SDXL = replace(TINY_SDXL, architecture="koala-700m", text_layers=(1, 1))
"""Distilled UNets and text encoders of one layer, where any model of the family will do."""

EMBEDDING: Shapes = {"emb_params": (4, 768)}
"""A textual inversion of four vectors for SD 1.5."""
_ATTENTIONS = {"down_blocks_1": 640, "down_blocks_2": 1280, "up_blocks_1": 1280, "up_blocks_2": 640}
_RANK = 4


def lora_shapes(context: int = 768) -> Shapes:
    """Return the tensors of a small LoRA in Kohya's layout; the default context is SD 1.5's."""
    shapes: Shapes = {}
    for block, width in _ATTENTIONS.items():
        for projection, inputs in (("to_q", width), ("to_k", context), ("to_v", context)):
            layer = f"lora_unet_{block}_attentions_0_transformer_blocks_0_attn2_{projection}"
            shapes[f"{layer}.lora_down.weight"] = (_RANK, inputs)
            shapes[f"{layer}.lora_up.weight"] = (width, _RANK)
            shapes[f"{layer}.alpha"] = ()
    return shapes


def write_checkpoint(path: Path, shapes: Shapes | None = None, seed: int = 0) -> None:
    """Write random fp16 weights as a safetensors file; the default shapes are a tiny SD 1.5's."""
    shapes = sd15_shapes(TINY_SD15) if shapes is None else shapes
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in sorted(shapes.items()):
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights = np.random.default_rng(seed).standard_normal(offset // 2, np.float32) * 0.02
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(weights.astype(np.float16).tobytes())
