"""Finds the variant of a pipeline within its family, by its configs. Pure.

`sd_api.taxonomy` describes each variant. The values of the configs come from a file or a repo, so a
value of an unexpected type counts as missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from sd_api.choices import BaseModelName
from sd_api.taxonomy import UNETS

_Config = Mapping[str, Any]

_BY_CHANNELS = {4: "normal", 8: "edit", 9: "inpaint"}
"""The variant of a UNet, by its number of input channels."""

_FILL_INPUTS = 6
"""FLUX.1 Fill reads six values for each value that it predicts: one of the noisy latents, one of
the image's latents, and four of the mask."""

_FLUX2 = {6144: "dev", 4096: "klein_9b", 3072: "klein_4b"}
_WAN_TASKS = {16: "t2v", 36: "i2v", 48: "ti2v"}
_WAN_PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
_WAN_SIZES = {1536: "1.3b", 3072: "5b", 5120: "14b"}
_TWO_TRANSFORMERS = "a14b"


def variant_of(
    base_model: str | None,
    class_name: str,
    config: _Config,
    options: _Config = MappingProxyType({}),
    components: Collection[str] = (),
) -> str | None:
    """Return the value of status.artifact.variant. None if the configs do not show it.

    class_name: the pipeline's class. config: the config of the UNet or the transformer. options:
    the pipeline's own settings. components: the names of its components that are not null.
    """
    is_distilled = options.get("is_distilled") is True
    match base_model:
        case BaseModelName.SD3:
            return _sd3(config)
        case BaseModelName.FLUX:
            return _flux(config)
        case BaseModelName.FLUX2:
            return _flux2(config, is_distilled=is_distilled)
        case BaseModelName.QWEN_IMAGE:
            return _qwen_image(class_name)
        case BaseModelName.KREA2:
            return "krea2_turbo" if is_distilled else "krea2_base"
        case BaseModelName.WAN if class_name in _WAN_PIPELINES:
            return _wan(config, has_two="transformer_2" in components)
        case _ if base_model in UNETS:
            return _BY_CHANNELS.get(_number(config, "in_channels"))
        case _:
            return None


def _sd3(config: _Config) -> str:
    if config.get("qk_norm") is None:
        return "3_medium"
    return "3.5_medium" if config.get("dual_attention_layers") else "3.5_large"


def _flux(config: _Config) -> str | None:
    inputs = _number(config, "in_channels")
    outputs = _number(config, "out_channels") or inputs
    has_guidance = config.get("guidance_embeds") is True
    if has_guidance and inputs == _FILL_INPUTS * outputs:
        return "dev_fill"
    if not inputs or inputs != outputs:
        return None  # FLUX.1 Depth and Canny: their configs are equal.
    return "dev" if has_guidance else "schnell"


def _flux2(config: _Config, *, is_distilled: bool) -> str | None:
    size = _FLUX2.get(_width(config))
    if size is None or size == "dev":
        return size
    return size if is_distilled else f"{size}_base"


def _qwen_image(class_name: str) -> str | None:
    if class_name.startswith("QwenImageEdit"):
        return "edit"
    return "generate" if class_name == "QwenImagePipeline" else None


def _wan(config: _Config, *, has_two: bool) -> str | None:
    task = _WAN_TASKS.get(_number(config, "in_channels"))
    size = _WAN_SIZES.get(_width(config))
    if task is None or size is None:
        return None
    return f"{task}_{_TWO_TRANSFORMERS if has_two else size}"


def _width(config: _Config) -> int:
    return _number(config, "num_attention_heads") * _number(config, "attention_head_dim")


def _number(config: _Config, key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0
