"""Finds out how the components of a repo are quantized. They are published unchanged or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sd_api.choices import Revision
from sd_api.reasons import Reason
from sd_loader.convert.detect.quantized import refuse_quantized_config
from sd_loader.diffusers_repo.listed_config import plain_settings
from sd_loader.errors import LoaderError, prefixing

_METHOD = "bitsandbytes"
_KINDS = ("nf4", "fp4")
_FORMATS = frozenset({*_KINDS, "int8"})
_SETTINGS = frozenset(
    {
        "_load_in_4bit",
        "_load_in_8bit",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_storage",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "llm_int8_skip_modules",
        "llm_int8_threshold",
        "load_in_4bit",
        "load_in_8bit",
        "quant_method",
    }
)
"""The keys that diffusers and transformers write for bitsandbytes."""


@dataclass(frozen=True)
class Quantization:
    """How a component is quantized."""

    name: str
    """nf4, fp4 or int8."""

    settings: Mapping[str, Any]
    """The quantizer's settings, as they are published."""


def precision_of(formats: Iterable[str]) -> str:
    """The precision, as the status states it, of a folder with components in these formats."""
    return "-".join(sorted(formats))


def is_quantized(precision: str | None) -> bool:
    """Whether a published precision is that of quantized weights."""
    return precision is not None and _FORMATS.issuperset(precision.split("-"))


def quantization(
    component: str, config: Mapping[str, Any], precision: Revision | None
) -> Quantization | None:
    """How a component is quantized. None if it is not quantized.

    Refuse every format except those of bitsandbytes. If a precision is requested, refuse all
    formats, because quantized weights cannot be cast.
    """
    settings: Any = config.get("quantization_config")
    name = _name(settings)
    if name is None:
        with prefixing(component):
            refuse_quantized_config(config)
        return None
    if precision is not None:
        raise LoaderError(
            Reason.INVALID_SPEC,
            f"spec.revision is {precision.value}, but the weights of {component} are quantized"
            f" ({name}, by {_METHOD}) and cannot be cast: remove spec.revision to publish them"
            " unchanged",
        )
    path = f"{component}/config.json: quantization_config"
    return Quantization(name, plain_settings(settings, _SETTINGS, path))


def _name(settings: Any) -> str | None:  # noqa: ANN401 - untrusted JSON
    """The format of the weights. None if it is not a known format of bitsandbytes."""
    if not isinstance(settings, dict) or settings.get("quant_method") != _METHOD:
        return None
    if settings.get("load_in_8bit") is True:
        return "int8"
    kind = settings.get("bnb_4bit_quant_type")
    return next((name for name in _KINDS if kind == name and settings.get("load_in_4bit")), None)
