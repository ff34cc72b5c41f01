"""Plans the PEFT adapter of a LoRA: `adapter_config.json` and `adapter_model.safetensors`.

The adapter has the same weights as the LoRA. Its config has the scales, instead of alpha tensors.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sd_api.reasons import Reason
from sd_loader.convert.detect.lora_kinds import shown
from sd_loader.convert.plan.lora_keys import Half
from sd_loader.convert.write.files import Item, PlannedFile, json_file, weights_file
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.tensors import Dtype, Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NUMBERS = {
    Dtype.F64: "<d",
    Dtype.F32: "<f",
    Dtype.F16: "<e",
    Dtype.I64: "<q",
    Dtype.I32: "<i",
}


@dataclass(frozen=True)
class Change:
    """The tensors by which the LoRA changes one module of the model."""

    module: str
    """The module's name in diffusers."""

    tensors: Mapping[Half, Item]
    """Its tensors without the alpha. The items have the names of the published LoRA."""

    alpha: Tensor | None = None

    alpha_name: str = ""
    """The name of the alpha in the file."""

    @property
    def rank(self) -> int:
        """The rank of the change."""
        return self.tensors[Half.DOWN].source.shape[0]


def peft_files(
    changes: Sequence[Change], config: Mapping[str, Any], modules: Collection[str]
) -> tuple[PlannedFile, ...]:
    """Plan the adapter's files.

    config: the part of PEFT's config that the LoRA's metadata has. modules: the names of all
    modules of the model that a LoRA may change.
    """
    items = [
        Item(f"{_PREFIX}{change.module}.{half.value}", item.source, item.dtype)
        for change in changes
        for half, item in change.tensors.items()
    ]
    return (
        json_file(CONFIG_FILE, _config(changes, config, modules)),
        weights_file(WEIGHTS_FILE, items),
    )


def _config(
    changes: Sequence[Change], config: Mapping[str, Any], modules: Collection[str]
) -> dict[str, Any]:
    ranks = {change.module: change.rank for change in changes}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT also applies a name to modules whose longer names end with it.
    ambiguous = {name for name in ranks if any(other.endswith(f".{name}") for other in modules)}
    targets: list[str] | str = sorted(ranks)
    if ambiguous:
        targets = "|".join(re.escape(name) for name in targets)
    halves = {half for change in changes for half in change.tensors}
    own: dict[str, Any] = {"r": rank, "rank_pattern": _pattern(ranks, rank, ambiguous)}
    if "r" in config:
        own = {name: config[name] for name in _STATED if config.get(name) is not None}
    else:
        alphas = {change.module: _alpha(change) for change in changes}
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        own |= {"lora_alpha": alpha, "alpha_pattern": _pattern(alphas, alpha, ambiguous)}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "target_modules": targets,
        "lora_bias": Half.BIAS in halves,
        "use_dora": Half.MAGNITUDE in halves,
        **own,
    }


_STATED = ("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora")
"""The keys of the metadata that set rank and scale. All other values follow from the tensors."""


def _pattern(
    values: Mapping[str, float], usual: float, ambiguous: Collection[str]
) -> dict[str, float]:
    return {
        f"^{name}" if name in ambiguous else name: value
        for name, value in values.items()
        if value != usual
    }


def _alpha(change: Change) -> float:
    """The alpha of a change. A change without alpha has scale 1: its alpha is its rank."""
    if change.alpha is None:
        return change.rank
    value = _number(change.alpha)
    if value is None or value in (float("inf"), float("-inf")) or value != value:
        raise LoaderError(
            Reason.VERIFICATION_FAILED,
            f"{shown(change.alpha_name)} is {value}, which is not a scale",
        )
    return int(value) if value == int(value) else value


def _number(tensor: Tensor) -> float | None:
    """Read a tensor of one number. None if alphas do not have its type."""
    content = read_at(tensor.fd, tensor.offset, tensor.dtype.itemsize)
    if tensor.dtype is Dtype.BF16:
        content, code = bytes(2) + content, "<f"
    elif tensor.dtype in _NUMBERS:
        code = _NUMBERS[tensor.dtype]
    else:
        return None
    return float(struct.unpack(code, content)[0])
