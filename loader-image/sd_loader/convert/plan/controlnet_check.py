"""Whether a ControlNet of a diffusers repo is what its config says: else it would not open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_api.spec import BaseModelName
from sd_loader.convert.plan.controlnet import CONFIG, existing, load_family
from sd_loader.convert.plan.repo_fields import check_fields, contradiction
from sd_loader.convert.plan.small_files import check_heads
from sd_loader.convert.tables.architecture import fill_in
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.convert.tables.standalone import own_layout
from sd_loader.tensors import Tensor

_NAME = "controlnet"
# What the structure is made of, with diffusers' defaults: where all of it is as usual, so are the
# names of the tensors. What depends on the transformers that there are is compared apart.
_STRUCTURE = {
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "class_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "layers_per_block": 2,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "use_linear_projection": False,
}
_DEPTHS = "transformer_layers_per_block"
_KINDS = "down_block_types"
_MIDDLE = "mid_block_type"
_USUAL_MIDDLE = "UNetMidBlock2DCrossAttn"


def checked_controlnet(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], BaseModelName | None]:
    """The config, completed by what the tensors say, and the family; a contradiction is an error.

    Of a structure that is none of the known ones, the config must be of the right kind.
    """
    check_fields(_NAME, config)
    family = _family(config)
    known = load_family(family)
    usual = known.templates[CONFIG]
    levels = len(usual["block_out_channels"])
    is_usual = len(config.get("block_out_channels", ())) in (0, levels) and all(
        config.get(key, default) == usual.get(key, default) for key, default in _STRUCTURE.items()
    )
    if not is_usual:
        return dict(config), None
    component, template = existing(known, tensors)
    _compare_structure(config, template)
    component = own_layout(component)
    dimensions: Dimensions = {}
    bind(component, tensors, dimensions)
    left_over(component, tensors)
    told = {
        key: fill_in(value, dimensions) for key, value in template.items() if _is_told(key, value)
    }
    for key, value in told.items():
        if key in config and config[key] != value:
            contradiction(_NAME, key, config[key], f"{value}, as its tensors have it")
    filled = {**fill_in(template, dimensions), **config, **told}
    check_heads(f"{_NAME}/{CONFIG}", filled)
    return {**config, **told}, family


def _family(config: Mapping[str, Any]) -> BaseModelName:
    if config.get("addition_embed_type") is not None:
        return BaseModelName.SDXL
    return BaseModelName.SD2 if config.get("use_linear_projection") else BaseModelName.SD1


def _compare_structure(config: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Refuse a config that says other transformers than there are."""
    kinds = template[_KINDS]
    if config.get(_KINDS, kinds) != kinds:
        contradiction(_NAME, _KINDS, config[_KINDS], f"{kinds}, as its tensors have it")
    middle = template.get(_MIDDLE, _USUAL_MIDDLE)
    if config.get(_MIDDLE, _USUAL_MIDDLE) != middle:
        contradiction(_NAME, _MIDDLE, config.get(_MIDDLE), f"{middle}, as its tensors have it")
    depths = template.get(_DEPTHS, [1] * len(kinds))
    told = config.get(_DEPTHS, 1)
    said = told if isinstance(told, list) else [told] * len(kinds)
    crossing = [kind.startswith("CrossAttn") for kind in kinds]
    # Where a level has no transformers, the number says nothing.
    if len(said) != len(kinds) or any(
        is_there and one != other
        for one, other, is_there in zip(said, depths, crossing, strict=True)
    ):
        contradiction(_NAME, _DEPTHS, told, f"{depths}, as its tensors have it")


def _is_told(key: str, template: object) -> bool:
    """Whether shapes tell a field; the number of heads is a guess."""
    first = template[0] if isinstance(template, list) and template else template
    return key != "attention_head_dim" and isinstance(first, str) and first.startswith("$")
