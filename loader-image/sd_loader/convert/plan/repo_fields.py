"""The values that the structural fields of a component's config may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet

_MOST = 1 << 20
"""More than any width or vocabulary."""
_MOST_LAYERS = 64


def _is_number(value: object, most: int = _MOST, least: int = 1) -> bool:
    return type(value) is int and least <= value <= most


def _are_numbers(value: object) -> bool:
    return _is_number(value) or _is_list(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _are_layers(value: object) -> bool:
    if isinstance(value, list):  # levels, and the blocks within a level
        return bool(value) and all(map(_are_layers, value))
    return _is_number(value, _MOST_LAYERS, least=0)


def _are_flags(value: object) -> bool:
    return isinstance(value, bool) or (
        isinstance(value, list) and all(isinstance(item, bool) for item in value)
    )


def _are_among(names: frozenset[str], value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item in names for item in value)
    )


def _is_among(names: frozenset[str], value: object) -> bool:
    return isinstance(value, str) and value in names


Rule = tuple[Callable[[object], bool], str]

_NUMBER: Rule = (_is_number, "a positive whole number")
_NUMBERS: Rule = (_are_numbers, "a positive whole number or a list of such")
_LIST: Rule = (_is_list, "a list of positive whole numbers")
_LAYERS: Rule = (_are_layers, f"a number up to {_MOST_LAYERS} or a list of such")
_FLAGS: Rule = (_are_flags, "true, false or a list of such")


def _names(*names: str) -> Rule:
    return partial(_are_among, frozenset(names)), f"a list of {' and '.join(names)}"


def _name(*names: str) -> Rule:
    return partial(_is_among, frozenset(names)), " or ".join(names)


_TEXT_FIELDS: Mapping[str, Rule] = {
    "hidden_size": _NUMBER,
    "intermediate_size": _NUMBER,
    "max_position_embeddings": _NUMBER,
    "num_attention_heads": _NUMBER,
    "num_hidden_layers": (
        partial(_is_number, most=_MOST_LAYERS),
        f"a number from 1 to {_MOST_LAYERS}",
    ),
    "projection_dim": _NUMBER,
    "vocab_size": _NUMBER,
}
_FIELDS: Mapping[str, Rule] = {
    "addition_embed_type": _name("text_time"),
    "addition_time_embed_dim": _NUMBER,
    "attention_head_dim": _NUMBERS,
    "block_out_channels": _LIST,
    "conv_in_kernel": _NUMBER,
    "cross_attention_dim": _NUMBERS,
    "down_block_types": _names("CrossAttnDownBlock2D", "DownBlock2D", "DownEncoderBlock2D"),
    "dual_cross_attention": _FLAGS,
    "in_channels": _NUMBER,
    "latent_channels": _NUMBER,
    "layers_per_block": _LAYERS,
    "mid_block_add_attention": _FLAGS,
    "mid_block_type": _name("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "norm_num_groups": _NUMBER,
    "num_attention_heads": _NUMBERS,
    "only_cross_attention": _FLAGS,
    "out_channels": _NUMBER,
    "projection_class_embeddings_input_dim": _NUMBER,
    "reverse_transformer_layers_per_block": _LAYERS,
    "sample_size": _NUMBERS,
    "transformer_layers_per_block": _LAYERS,
    "up_block_types": _names("CrossAttnUpBlock2D", "UpBlock2D", "UpDecoderBlock2D"),
    "use_linear_projection": _FLAGS,
    "use_post_quant_conv": _FLAGS,
    "use_quant_conv": _FLAGS,
}
_PER_LEVEL = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "attention_head_dim",
    "cross_attention_dim",
    "layers_per_block",
    "num_attention_heads",
    "only_cross_attention",
    "transformer_layers_per_block",
)
# A null in these fields means the same as an absent field.
_NULLABLE = {
    "addition_embed_type",
    "addition_time_embed_dim",
    "mid_block_type",
    "num_attention_heads",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
    "sample_size",
}


def check_fields(component: str, config: Mapping[str, Any]) -> None:
    """Refuse a config with a field of a wrong type or range."""
    is_text = component.startswith("text_encoder")
    for key, (is_right, what) in (_TEXT_FIELDS if is_text else _FIELDS).items():
        absent = key not in config or (not is_text and key in _NULLABLE and config[key] is None)
        if not absent and not is_right(config[key]):
            contradiction(component, key, config[key], what)
    lists = {key: config[key] for key in _PER_LEVEL if isinstance(config.get(key), list)}
    for key, value in lists.items():
        levels = len(next(iter(lists.values())))
        if len(value) != levels:
            contradiction(component, key, value, f"of {levels} items, one for each level")


def contradiction(component: str, key: str, value: object, expected: str) -> NoReturn:
    """Refuse a field. The message names what it should be."""
    raise LoaderError(
        Reason.CONVERSION_FAILED,
        f"{component}/config.json: {key} is {snippet(str(value))}; it should be {expected}",
    )
