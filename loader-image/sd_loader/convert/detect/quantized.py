"""Refuses quantized weights, and names their format.

Each format stores further numbers, such as scales, beside a weight. The real values follow from
both: a reader that ignores the further numbers gets wrong values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Dtype, Tensor

_INT4 = "packed 4-bit numbers"
_BY_LAST_PART = {
    "bitsandbytes__nf4": "nf4, by bitsandbytes",
    "bitsandbytes__fp4": "fp4, by bitsandbytes",
    "quant_map": "4-bit, by bitsandbytes",
    "absmax": "4-bit, by bitsandbytes",
    "SCB": "int8, by bitsandbytes",
    "wscales": "SVDQuant, by Nunchaku",
    "g_idx": "GPTQ",
    "qzeros": "GPTQ or AWQ",
    "qweight": "GPTQ or AWQ",
    "W_q": "HQQ",
    "_data": "quanto",
    "weight_scale_2": "nvfp4",
    "weight_global_scale": "nvfp4",
    "weight_packed": "by compressed-tensors",
    "q_weight": "EXL2",
    "encoded_exponent": "DFloat11",
    "sign_mantissa": "DFloat11",
    "_weight_qdata": "torchao",
    "weight:_data": "torchao",
    "weight:qdata": "torchao",
    "_amax": "by NVIDIA ModelOpt",
    "zero_point": "by SDNQ",
    "weight_scale_inv": "scaled fp8, in blocks",
    "scale_weight": "scaled fp8",
}
"""Formats by the last part of a tensor's name. The first row that matches any tensor counts."""

_SCALE = "scale"
"""Last part of a scale's name in some formats. The weight of a norm may have the same name."""
_SCALES = ("weight_scale", "comfy_quant", "input_scale", "scale_input")
"""Last parts of names that many formats have. The type of the weight tells the formats apart."""
_BY_WEIGHT = {
    Dtype.F8_E4M3: "scaled fp8",
    Dtype.F8_E5M2: "scaled fp8",
    Dtype.I8: "int8",
    Dtype.U8: _INT4,
    Dtype.I32: _INT4,
}
_BY_WEIGHT_OF_EXPONENTS = {Dtype.F8_E4M3: "mxfp8", Dtype.F8_E5M2: "mxfp8", Dtype.U8: "mxfp4"}
"""Formats by the type of the weight, if its scales are exponents: these are 8-bit integers."""
_WHOLE = (Dtype.I8, Dtype.U8)
_ANY = "with scales"
_CONFIG = "quantization_config"
_SHOWN = 120
"""Maximum length of a name in a message. The ends of long names show the format."""


def refuse_quantized(tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file with quantized weights. fp8 without scales does not count as quantized."""
    found = _format(tensors)
    if found is not None:
        refuse_format(*found)


def refuse_quantized_config(config: Mapping[str, Any]) -> None:
    """Refuse a component whose config has the settings of a quantizer."""
    quantizer = config.get(_CONFIG)
    if not quantizer:
        return
    settings = quantizer if isinstance(quantizer, dict) else {}
    method = settings.get("quant_method", settings.get("method"))
    by = snippet(method, 20) if isinstance(method, str) else "by an unknown method"
    kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else None
    if settings.get("load_in_8bit"):
        kind = "int8"
    refuse_format(f"{snippet(kind, 20)}, by {by}" if isinstance(kind, str) else by, _CONFIG)


def refuse_format(what: str, seen: str) -> NoReturn:
    """Refuse weights of a quantized format. seen: a name that shows the format."""
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the weights are quantized ({what}), which is not supported: use a version of the model in"
        f" fp16, bf16 or fp32 (seen: {snippet(seen, _SHOWN)})",
    )


def _format(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Describe the format and name a tensor that shows it. None if no weight is quantized."""
    last_parts: dict[str, str] = {}
    for name in tensors:
        last_parts.setdefault(name.rpartition(".")[2], name)
    for part, what in _BY_LAST_PART.items():
        if part in last_parts:
            return what, last_parts[part]
    for part in _SCALES:
        if part in last_parts:
            return _by_weight(last_parts[part], tensors), last_parts[part]
    if _SCALE in last_parts:
        for name in tensors:
            layer, _, part = name.rpartition(".")
            weight = tensors.get(f"{layer}.weight")
            if part == _SCALE and weight is not None and weight.dtype in _BY_WEIGHT:
                return _BY_WEIGHT[weight.dtype], name
    for name, tensor in tensors.items():
        if name.endswith("weight") and len(tensor.shape) > 1 and tensor.dtype in _WHOLE:
            return _BY_WEIGHT[tensor.dtype], name
    return None


def _by_weight(scale: str, tensors: Mapping[str, Tensor]) -> str:
    """The format of a weight. scale: the name of the weight's scale or of its `comfy_quant`."""
    layer = scale.rpartition(".")[0]
    scales = tensors.get(f"{layer}.weight_scale")
    has_exponents = scales is not None and scales.dtype is Dtype.U8
    formats = _BY_WEIGHT_OF_EXPONENTS if has_exponents else _BY_WEIGHT
    weight = tensors.get(f"{layer}.weight")
    return _ANY if weight is None else formats.get(weight.dtype, _ANY)
