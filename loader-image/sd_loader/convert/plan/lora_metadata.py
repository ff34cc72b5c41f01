"""Checks the metadata that is published with a LoRA, mainly its PEFT config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import shown
from sd_loader.convert.plan.lora_keys import Half, Layer, Style
from sd_loader.errors import LoaderError
from sd_loader.formats.metadata import ADAPTER
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

_ADAPTER_LIMIT = 1 << 20

# LoraConfig can import a module (megatron_core), read files (some kinds of init_lora_weights,
# corda_config, …) or rebuild the model. A field that is not listed here must have PEFT's default.
_NUMBERS = ("r", "lora_alpha", "lora_dropout")
_FLAGS = ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "inference_mode")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_NAMES = ("target_modules", "exclude_modules")
_WORDS = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
    "peft_type": ("LORA",),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
    "task_type": ("FEATURE_EXTRACTION",),
}
# PEFT treats the keys of patterns as regular expressions, which may take forever to match.
_PLAIN = re.compile(r"\^?[\w.-]+", re.ASCII)
_TEXTS = ("peft_version", "base_model_name_or_path", "revision")


def passed_on(
    metadata: Mapping[str, str],
    left_out: Sequence[str],
    layers: Sequence[Layer],
    tensors: Mapping[str, Tensor],
    *,
    missing: str,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the metadata to publish, and warnings about the rest.

    left_out: names of entries that are too long. missing: the component's name if it is not in the
    names of the tensors and of the metadata's settings; otherwise empty.
    """
    if ADAPTER in left_out:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{ADAPTER} is too long")
    kept = dict(metadata)
    if ADAPTER in kept:
        if any(Style.KOHYA in layer.styles for layer in layers):
            raise LoaderError(
                Reason.UNSUPPORTED_FORMAT,
                f"the file has names of kohya's style and {ADAPTER}; diffusers takes one or the"
                " other",
            )
        config = _adapter(kept[ADAPTER])
        if missing:
            config = {f"{missing}.{name}": value for name, value in config.items()}
        _check_ranks(config, layers, tensors)
        kept[ADAPTER] = json.dumps(config)
    names = ", ".join(snippet(name) for name in left_out)
    warnings = (f"metadata too long to publish: {names}",) if names else ()
    return {"format": "pt", **kept}, warnings


def component_config(metadata: Mapping[str, str], component: str) -> dict[str, Any]:
    """Return the PEFT config of a component from published metadata. Empty if there is none."""
    return _own(json.loads(metadata.get(ADAPTER, "{}")), component)


def _own(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    return {
        name.removeprefix(f"{component}."): value
        for name, value in config.items()
        if name.startswith(f"{component}.")
    }


def _adapter(text: str) -> dict[str, Any]:
    if len(text) > _ADAPTER_LIMIT:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"{ADAPTER} is too long")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoaderError(
            Reason.CONVERSION_FAILED, f"{ADAPTER} is not valid JSON: {snippet(str(error))}"
        ) from None
    if not isinstance(config, dict):
        raise LoaderError(Reason.CONVERSION_FAILED, f"{ADAPTER} is not a JSON object")
    for name, value in config.items():
        if not _is_harmless(name.rpartition(".")[2], value):
            raise LoaderError(
                Reason.UNSAFE_MODEL,
                f"{ADAPTER} sets {snippet(name)} to {snippet(json.dumps(value), 40)}, which no LoRA"
                " of these families needs",
            )
    return config


def _is_harmless(name: str, value: object) -> bool:
    if name in _NUMBERS:
        return value is None or _is_number(value)
    if value is None or value is False or value == {} or value == []:
        return True
    if name in _FLAGS:
        return value is True
    if name in _PATTERNS:
        return isinstance(value, dict) and all(
            _PLAIN.fullmatch(key) and _is_number(number) for key, number in value.items()
        )
    if name in _NAMES:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name in _WORDS:
        return value in _WORDS[name]
    return name in _TEXTS and isinstance(value, str)


def _is_number(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _check_ranks(
    config: Mapping[str, Any], layers: Sequence[Layer], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse metadata whose ranks differ from those of the tensors."""
    for layer in layers:
        own = _own(config, layer.component)
        known = {own.get("r"), *(own.get("rank_pattern") or {}).values()}
        rank = tensors[layer.names[Half.DOWN]].shape[0]
        if rank not in known:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{ADAPTER} gives the {layer.component} the rank {snippet(str(own.get('r')))}, but"
                f" {shown(layer.names[Half.DOWN])} has rank {rank}",
            )
