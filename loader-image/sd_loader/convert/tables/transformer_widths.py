"""Compares the config of a transformer with the tensors of a single file.

A single file has no config, so a diffusers repo gives one. The config and the file must describe
the same model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_INNER = "num_attention_heads*attention_head_dim"
_OUTPUTS = "patch_size*patch_size*out_channels|in_channels"
_PATCHES = "patch_size*patch_size*in_channels"
_FLUX = {
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
    "inner": _INNER,
    "head": "attention_head_dim",
    "context": "joint_attention_dim",
    "inputs": "in_channels",
    "outputs": _OUTPUTS,
}
_EXPRESSIONS: Mapping[str, Mapping[str, str]] = {
    "auraflow": {
        "joint_transformer_blocks": "num_mmdit_layers",
        "single_transformer_blocks": "num_single_dit_layers",
        "inner": _INNER,
        "context": "joint_attention_dim",
        "positions": "pos_embed_max_size",
        "inputs": _PATCHES,
        "outputs": _OUTPUTS,
    },
    "chroma": {
        **_FLUX,
        "distilled_guidance_layer.layers": "approximator_layers",
        "approximator": "approximator_hidden_dim",
        "approximator_inputs": "approximator_num_channels",
    },
    "flux": {**_FLUX, "pooled": "pooled_projection_dim"},
    "flux2": {
        **_FLUX,
        "time": "timestep_guidance_channels",
        "mlp": f"{_INNER}*mlp_ratio",
    },
    "hidream": {
        "double_stream_blocks": "num_layers",
        "single_stream_blocks": "num_single_layers",
        "inner": _INNER,
        "pooled": "text_emb_dim",
        "context": "caption_channels.0",
        "context_2": "caption_channels.1",
        "experts": "num_routed_experts",
        "inputs": _PATCHES,
        "outputs": _OUTPUTS,
    },
    "krea-2": {
        "transformer_blocks": "num_layers",
        "text_fusion.layerwise_blocks": "num_layerwise_text_blocks",
        "text_fusion.refiner_blocks": "num_refiner_text_blocks",
        "inner": _INNER,
        "head": "attention_head_dim",
        "keys": "num_key_value_heads*attention_head_dim",
        "mlp": "intermediate_size",
        "time": "timestep_embed_dim",
        "context": "text_hidden_dim",
        "text_head": "text_hidden_dim/text_num_attention_heads",
        "text_keys": "text_num_key_value_heads*text_hidden_dim/text_num_attention_heads",
        "text_layers": "num_text_layers",
        "text_mlp": "text_intermediate_size",
        "inputs": "in_channels",
    },
    "ltx": {
        "transformer_blocks": "num_layers",
        "inner": _INNER,
        "context": "caption_channels",
        "cross_context": "cross_attention_dim",
        "inputs": "in_channels",
        "outputs": "out_channels|in_channels",
    },
    "lumina2": {
        "layers": "num_layers",
        "noise_refiner": "num_refiner_layers",
        "context_refiner": "num_refiner_layers",
        "inner": "hidden_size",
        "head": "hidden_size/num_attention_heads",
        "keys": "num_kv_heads*hidden_size/num_attention_heads",
        "context": "cap_feat_dim",
        "time": "hidden_size<1024",
        "inputs": _PATCHES,
        "outputs": _OUTPUTS,
    },
    "qwen-image": {
        "transformer_blocks": "num_layers",
        "inner": _INNER,
        "head": "attention_head_dim",
        "context": "joint_attention_dim",
        "inputs": "in_channels",
        "outputs": _OUTPUTS,
    },
    "sana": {
        "transformer_blocks": "num_layers",
        "inner": _INNER,
        "context": "caption_channels",
        "cross": "num_cross_attention_heads*cross_attention_head_dim",
        "cross_context": "cross_attention_dim",
        "mlp": f"{_INNER}*mlp_ratio",
        "patch": "patch_size",
        "inputs": "in_channels",
        "outputs": _OUTPUTS,
    },
    "sd-3": {
        "transformer_blocks": "num_layers",
        "inner": _INNER,
        "head": "attention_head_dim",
        "context": "joint_attention_dim",
        "pooled": "pooled_projection_dim",
        "positions": "pos_embed_max_size*pos_embed_max_size",
        "patch": "patch_size",
        "inputs": "in_channels",
        "outputs": _OUTPUTS,
    },
    "wan": {
        "blocks": "num_layers",
        "inner": _INNER,
        "context": "text_dim",
        "time": "freq_dim",
        "image": "image_dim",
        "image_keys": "added_kv_proj_dim",
        "image_positions": "pos_embed_seq_len",
        "mlp": "ffn_dim",
        "inputs": "in_channels",
        "patch_0": "patch_size.0",
        "patch_1": "patch_size.1",
        "patch_2": "patch_size.2",
        "outputs": "patch_size.0*patch_size.1*patch_size.2*out_channels|in_channels",
    },
    "z-image": {
        "layers": "n_layers",
        "noise_refiner": "n_refiner_layers",
        "context_refiner": "n_refiner_layers",
        "inner": "dim",
        "head": "dim/n_heads",
        "context": "cap_feat_dim",
        "time": "dim<256",
        "inputs": "all_f_patch_size.0*all_patch_size.0*all_patch_size.0*in_channels",
    },
}
"""For each family: how a size follows from the keys of the config.

A size has the name that the key table gives it. A number of layers is named by the beginning of the
layers' published names. In an expression, `a|b` is b if a is null or missing, `a.0` is the first
item of the list a, and `a<256` is a or 256, whichever is less. Other sizes that diffusers computes
are left out.
"""


_LIMIT_OR_DEFAULT = re.compile(r"\|\w+|<\d+")
"""Matches the parts of expressions that messages leave out."""

_LARGEST = 1e9
"""Limit of a number in a config. A number that is not smaller counts as missing."""


@dataclass(frozen=True)
class _Switch:
    """A key of the config that adds tensors."""

    key: str

    mark: re.Pattern[str]
    """Matches the beginning of the published name of a tensor that the key adds. If the key lists
    layers, the pattern has a group, which is the number of the layer."""

    default: bool = False
    """The value that diffusers uses if the config does not have the key."""

    def found(self, names: Iterable[str]) -> bool | list[int]:
        """Return whether a name matches, or the numbers of the layers with matching names."""
        matches = [match for name in names if (match := self.mark.match(name)) is not None]
        if self.mark.groups:
            return sorted({int(match[1]) for match in matches})
        return bool(matches)

    def expected(self, config: Mapping[str, Any]) -> bool | list[int]:
        """The result of `found` for a file that agrees with this config."""
        value = config.get(self.key, self.default)
        if self.mark.groups:
            return sorted(value) if isinstance(value, list) else []
        return bool(value)


_SWITCHES: Mapping[str, tuple[_Switch, ...]] = {
    "flux": (_Switch("guidance_embeds", re.compile(r"time_text_embed\.guidance_embedder\.")),),
    "flux2": (
        _Switch("guidance_embeds", re.compile(r"time_guidance_embed\.guidance_embedder\."), True),
    ),
    "qwen-image": (
        _Switch("use_additional_t_cond", re.compile(r"time_text_embed\.addition_t_embedding\.")),
    ),
    "sana": (
        _Switch("guidance_embeds", re.compile(r"time_embed\.guidance_embedder\.")),
        _Switch("qk_norm", re.compile(r"transformer_blocks\.0\.attn1\.norm_q\.")),
    ),
    "sd-3": (
        _Switch("qk_norm", re.compile(r"transformer_blocks\.0\.attn\.norm_q\.")),
        _Switch("dual_attention_layers", re.compile(r"transformer_blocks\.(\d{1,4})\.attn2\.")),
    ),
    "wan": (
        _Switch("image_dim", re.compile(r"condition_embedder\.image_embedder\.")),
        _Switch("pos_embed_seq_len", re.compile(r"condition_embedder\.image_embedder\.pos_embed$")),
        _Switch("added_kv_proj_dim", re.compile(r"blocks\.0\.attn2\.add_k_proj\.")),
    ),
}


_KNOWN_VALUES: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "hidream": {"num_routed_experts": (4,)},
    "ltx": {
        "attention_bias": (True,),
        "attention_out_bias": (True,),
        "norm_elementwise_affine": (False,),
        "activation_fn": ("gelu-approximate",),
    },
    "sana": {
        "attention_bias": (False,),
        "norm_elementwise_affine": (False,),
        "qk_norm": (None, "rms_norm_across_heads"),
    },
    "sd-3": {"qk_norm": (None, "rms_norm")},
    "wan": {"cross_attn_norm": (True,)},
    "z-image": {
        "all_patch_size": ([2],),
        "all_f_patch_size": ([1],),
        "qk_norm": (True,),
        "siglip_feat_dim": (None,),
    },
}
"""By family: keys that change which tensors there are or how they are named, with the values that
published models have. The key tables cover only these values."""


@dataclass(frozen=True)
class Difference:
    """A contradiction between a file and a config."""

    key: str
    """The key or keys of the config."""

    config: str
    """The value in the config, or "missing"."""

    file: str
    """The value that the file shows."""


def unknown_value(family: str, config: Mapping[str, Any]) -> str | None:
    """The first key in a config with a value that the key table does not cover, or None."""
    return next(
        (
            key
            for key, known in _KNOWN_VALUES.get(family, {}).items()
            if key in config and config[key] not in known
        ),
        None,
    )


def differences(
    family: str, config: Mapping[str, Any], dimensions: Mapping[str, int], names: Iterable[str]
) -> Iterator[Difference]:
    """Yield the contradictions between a config and a file of a family.

    dimensions: the sizes that the file's shapes show, and its numbers of layers. names: the
    published names of its tensors.
    """
    for dimension, expression in _EXPRESSIONS[family].items():
        found = dimensions.get(dimension)
        expected = _value(expression, config)
        if found is not None and expected != found:
            shown = "missing" if expected is None else str(expected)
            yield Difference(_LIMIT_OR_DEFAULT.sub("", expression), shown, str(found))
    names = list(names)
    for switch in _SWITCHES.get(family, ()):
        in_config, in_file = switch.expected(config), switch.found(names)
        if in_config != in_file:
            yield Difference(switch.key, _shown(in_config), _shown(in_file))


def _shown(value: bool | list[int]) -> str:
    return ("set" if value else "not set") if isinstance(value, bool) else str(value)


def _value(expression: str, config: Mapping[str, Any]) -> int | None:
    """The value of an expression. None if the config lacks a number that the expression needs."""
    expression, _, limit = expression.partition("<")
    product: float = 1
    for operator, term in re.findall(r"([*/]?)([^*/]+)", expression):
        value = _term(term, config)
        if value is None or (operator == "/" and value < 1):
            return None
        product = product // value if operator == "/" else product * value
    # diffusers rounds a size down, too.
    return min(int(product), int(limit)) if limit else int(product)


def _term(term: str, config: Mapping[str, Any]) -> float | None:
    for alternative in term.split("|"):
        key, _, number = alternative.partition(".")
        value = config.get(key)
        if number:
            items = value if isinstance(value, list) else []
            value = items[int(number)] if int(number) < len(items) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if abs(value) < _LARGEST:
            return value
    return None
