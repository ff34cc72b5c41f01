"""Names the model of a LoRA that this loader cannot load, whatever the style of its names.

The styles differ in a prefix and in whether dots or underscores join the parts of a layer's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from sd_loader.tensors import Tensor

_PREFIX = re.compile(
    r"(base_model\.model\.)?"
    r"(lora_(unet|transformer)_|lycoris_|(model\.)?diffusion_model\.|transformer(_2)?\.)?"
)
_SD3_OR_FLUX_OR_QWEN = r"transformer_blocks_(?P<block>\d+)_(attn|norm1(_context)?|ff(_context)?)_"
_Z_OR_LUMINA = r"(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward)_"

# Names of layers, with underscores. The first pattern that matches any layer of the file counts.
_BY_NAME = {
    "Chroma": r"distilled_guidance_layer_",
    "HunyuanVideo": r"((double|single)_blocks_\d+_((img|txt)_mlp_fc|.*(adaLN|mod(ulation)?_linear))"
    r"|(txt_in_individual|context_embedder)_token_refiner)",
    "AuraFlow": r"(joint_transformer_blocks|double_layers|single_layers)_\d+_",
    "HiDream": r"(double|single)_stream_blocks_\d+_",
    "FLUX.2": r"((double|single)_stream_modulation|transformer_blocks_\d+_ff(_context)?_linear_"
    r"|single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out)_)",
    "FLUX.1": r"((double|single)_blocks|single_transformer_blocks)_\d+_",
    "Stable Diffusion 3": r"joint_blocks_\d+_",
    "Stable Diffusion 3 or FLUX.1": r"lora_te3_",
    "Qwen-Image": r"transformer_blocks_\d+_(img|txt)_(mod|mlp)_",
    "Lumina 2": r"(layers|noise_refiner|context_refiner)_\d+_(adaLN_modulation_1|attn|norm1)_",
    "Z-Image": r"(layers|noise_refiner)_\d+_(adaLN_modulation_0|attention_to_)",
    "Wan": r"blocks_\d+_((self|cross)_attn_(q|k|v|o)_|ffn_|cross_attn_(k|v)_img_)",
    "Wan or a model of its kind": r"blocks_\d+_attn[12]_(to|add)_",
}
_NAMED = {model: re.compile(pattern) for model, pattern in _BY_NAME.items()}

_HUNYUAN_VIDEO = re.compile(r"(.*\.)?double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)\.")
"""Matches HunyuanVideo's names of attention layers. With underscores instead of dots, FLUX.1 has
the same names."""

# Several models have these names. The width of a layer's input tells the models apart.
_SHARED = re.compile(f"{_SD3_OR_FLUX_OR_QWEN}|{_Z_OR_LUMINA}")
_BY_WIDTH = {
    1536: "Stable Diffusion 3",
    2304: "Lumina 2",
    2432: "Stable Diffusion 3",
    3072: "FLUX.1 or Qwen-Image",
    3840: "Z-Image",
}
_FLUX_OR_QWEN = 3072
_FLUX_BLOCKS = 19
"""Double blocks of FLUX.1. Qwen-Image has more."""

_OF_A_TRANSFORMER = re.compile(
    r"(base_model\.model\.)?(lora_transformer_|transformer\.|diffusion_model\.|lora_prior_)"
    r"|(lora_unet_)?((joint_|single_)?transformer_blocks|blocks|layers)[._]\d"
)


def model_of(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The model that a LoRA is for, and the name of a tensor that shows it. None if none does."""
    hunyuan_video = next((name for name in tensors if _HUNYUAN_VIDEO.match(name)), None)
    if hunyuan_video is not None:
        return "HunyuanVideo", hunyuan_video
    layers = {name: _layer(name) for name in tensors}
    for model, pattern in _NAMED.items():
        for name, layer in layers.items():
            if pattern.match(layer):
                return model, name
    return _by_width(layers, tensors)


def name_of_a_transformer(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that belongs to any transformer. None if no tensor does."""
    return next((name for name in tensors if _OF_A_TRANSFORMER.match(name)), None)


def _layer(name: str) -> str:
    prefix = _PREFIX.match(name)
    return name[prefix.end() if prefix else 0 :].replace(".", "_")


def _by_width(layers: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    found = list(_widths(layers, tensors))
    for name, width, block in found:
        if width == _FLUX_OR_QWEN and block >= _FLUX_BLOCKS:
            return "Qwen-Image", name
    for name, width, _ in found:
        if width in _BY_WIDTH:
            return _BY_WIDTH[width], name
    return None


def _widths(
    layers: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each down matrix, the width of its input and its block's number or 0.

    Only layers whose names several models share (`_SHARED`) count.
    """
    for name, layer in layers.items():
        match = _SHARED.match(layer)
        shape = tensors[name].shape
        is_down = name.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight"))
        if match and is_down and len(shape) == 2:
            yield name, shape[1], int(match["block"] or 0)
