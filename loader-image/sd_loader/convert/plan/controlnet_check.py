"""Checks that the tensors of a ControlNet's repo fit its config, so that diffusers can open it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_api.choices import BaseModelName
from sd_loader.convert.plan.config_rules import check_levels, check_opens, contradiction
from sd_loader.convert.plan.controlnet import existing, load_family
from sd_loader.convert.tables.architecture import fill_in
from sd_loader.convert.tables.bind import bind, left_over
from sd_loader.convert.tables.dimensions import Dimensions
from sd_loader.diffusers_repo.config_keys import allowed_config
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.tensors import Tensor

_NAME = "controlnet"
_CLASS = "ControlNetModel"
# The fields that make up the structure, with diffusers' defaults. If all have the usual values, the
# tensors have the usual names. Fields that depend on the transformers are compared separately.
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
    """Complete the config from the tensors. Return the config and the family.

    Refuse a config that contradicts the tensors, or asks for a tensor that is missing. For an
    unknown structure, return the config as it is, and None for the family.
    """
    allowed_config(config, _CLASS, f"{_NAME}/{CONFIG_NAME}")
    check_levels(_NAME, config)
    family = _family(config)
    known = load_family(family)
    usual = known.templates[CONFIG_NAME]
    levels = len(usual["block_out_channels"])
    is_usual = len(config.get("block_out_channels", ())) in (0, levels) and all(
        config.get(key, default) == usual.get(key, default) for key, default in _STRUCTURE.items()
    )
    if not is_usual:
        check_opens(_NAME, _CLASS, config, tensors)
        return dict(config), None
    component, template = existing(known, tensors)
    _compare_structure(config, template)
    component = component.in_diffusers_layout()
    dimensions: Dimensions = {}
    bind(component, tensors, dimensions)
    left_over(component, tensors)
    shown = {
        key: fill_in(value, dimensions) for key, value in template.items() if _is_shown(key, value)
    }
    for key, value in shown.items():
        if key in config and config[key] != value:
            contradiction(_NAME, key, config[key], f"{value}, as its tensors have it")
    checked = {**config, **shown}
    check_opens(_NAME, _CLASS, checked, tensors)
    return checked, family


def _family(config: Mapping[str, Any]) -> BaseModelName:
    if config.get("addition_embed_type") is not None:
        return BaseModelName.SDXL
    return BaseModelName.SD2 if config.get("use_linear_projection") else BaseModelName.SD1


def _compare_structure(config: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Refuse a config whose transformer blocks differ from those of the tensors."""
    kinds = template[_KINDS]
    if config.get(_KINDS, kinds) != kinds:
        contradiction(_NAME, _KINDS, config[_KINDS], f"{kinds}, as its tensors have it")
    middle = template.get(_MIDDLE, _USUAL_MIDDLE)
    if config.get(_MIDDLE, _USUAL_MIDDLE) != middle:
        contradiction(_NAME, _MIDDLE, config.get(_MIDDLE), f"{middle}, as its tensors have it")
    depths = template.get(_DEPTHS, [1] * len(kinds))
    value = config.get(_DEPTHS, 1)
    configured = value if isinstance(value, list) else [value] * len(kinds)
    crossing = [kind.startswith("CrossAttn") for kind in kinds]
    # The depth of a level without transformer blocks has no effect.
    if len(configured) != len(kinds) or any(
        is_there and one != other
        for one, other, is_there in zip(configured, depths, crossing, strict=True)
    ):
        contradiction(_NAME, _DEPTHS, value, f"{depths}, as its tensors have it")


def _is_shown(key: str, template: object) -> bool:
    """Return True if the shapes of tensors determine the value of a config key.

    They do not determine the number of attention heads.
    """
    first = template[0] if isinstance(template, list) and template else template
    return key != "attention_head_dim" and isinstance(first, str) and first.startswith("$")
