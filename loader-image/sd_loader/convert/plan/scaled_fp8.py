"""Reads the scales of a file's fp8 weights. Each scale is a separate tensor of the file.

A weight is `fp8 * scale`, rounded once. Older files of ComfyUI have `scale_weight` beside a weight,
and a tensor `scaled_fp8`. Newer ones have `weight_scale`, and describe the format in a tensor
`comfy_quant` or in the header. `detect.quantized` refuses all other formats.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from sd_api.reasons import Reason
from sd_loader.convert.detect.quantized import refuse_format
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet
from sd_loader.tensors import Dtype, Tensor, TensorFile

_SCALES = ("scale_weight", "weight_scale")
_DESCRIPTION = "comfy_quant"
_UNUSED = ("scale_input", "input_scale", "scaled_fp8")
"""Last parts of names: the scales of a layer's input, which pipelines do not use, and the mark of
older files."""

_IN_HEADER = "_quantization_metadata"
_FORMATS = {"float8_e4m3fn": Dtype.F8_E4M3, "float8_e5m2": Dtype.F8_E5M2}
_MOST_BYTES = 4096
"""Maximum size of a description. A usual one has about 30 bytes."""


def has_scales(names: Iterable[str]) -> bool:
    """Whether a file has scales or descriptions of quantized weights."""
    parts = {name.rpartition(".")[2] for name in names}
    return not parts.isdisjoint((*_SCALES, _DESCRIPTION))


def without_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the scales of fp8 weights, and without the scales' descriptions."""
    scales = _scales_by_weight(tensors)
    known = {name for name, _ in scales.values()}
    layers = {weight.removesuffix(".weight") for weight in scales}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in known and not _describes(name, layers)
    }


def scaled(file: TensorFile) -> TensorFile:
    """Return the file with each fp8 weight's scale in the weight's `Tensor`. Reads the scales."""
    if not has_scales(file.tensors):
        return file
    _check_formats(file)
    scales = _scales_by_weight(file.tensors)
    kept = without_scales(file.tensors)
    for weight, (name, scale) in scales.items():
        kept[weight] = replace(kept[weight], scale=_number(name, scale))
    return replace(file, tensors=kept)


def _scales_by_weight(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Name and tensor of each fp8 weight's scale, by the weight's name.

    Refuses a scale without its weight, and a second scale of a weight.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part not in _SCALES:
            continue
        weight = f"{layer}.weight"
        if weight not in tensors:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{snippet(name)} is the scale of a weight that is missing",
            )
        if weight in found:
            raise LoaderError(Reason.CONVERSION_FAILED, f"{snippet(weight)} has two scales")
        if tensors[weight].dtype in _FORMATS.values() and tensor.dtype is not Dtype.U8:
            found[weight] = (name, tensor)
    return found


def _describes(name: str, layers: set[str]) -> bool:
    """Whether a tensor is an unused scale, a description or the mark of a file with scales.

    layers: the layers with scaled weights.
    """
    layer, _, part = name.rpartition(".")
    if part == "scaled_fp8":
        return True
    return layer in layers and part in (*_UNUSED, _DESCRIPTION)


def _check_formats(file: TensorFile) -> None:
    """Refuse a description of a format that is not fp8, or that differs from its weight's type."""
    for name, form in (*_described(file), *_described_in_header(file)):
        if form not in _FORMATS:
            refuse_format(snippet(form, 40), name)
        weight = file.tensors.get(f"{name.removesuffix(f'.{_DESCRIPTION}')}.weight")
        if weight is not None and weight.dtype is not _FORMATS[form]:
            raise LoaderError(
                Reason.CONVERSION_FAILED,
                f"{snippet(name)} says {form}, but the weight is of {weight.dtype.label}",
            )


def _described(file: TensorFile) -> Iterator[tuple[str, str]]:
    """Name and format of each description in a tensor."""
    for name, tensor in file.tensors.items():
        if name.rpartition(".")[2] == _DESCRIPTION:
            content = b""
            if tensor.dtype is Dtype.U8 and tensor.strides is None and tensor.count <= _MOST_BYTES:
                content = os.pread(tensor.fd, tensor.nbytes, tensor.offset)
            yield name, _format_in(content, name)


def _described_in_header(file: TensorFile) -> Iterator[tuple[str, str]]:
    """Layer and format of each description in the header."""
    if _IN_HEADER in file.left_out:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"the header's {_IN_HEADER} is too long")
    text = file.metadata.get(_IN_HEADER)
    if text is None:
        return
    layers = _parsed(text.encode(), _IN_HEADER).get("layers")
    if not isinstance(layers, dict):
        raise LoaderError(Reason.CONVERSION_FAILED, f"the header's {_IN_HEADER} has no layers")
    for name, description in layers.items():
        form = description.get("format") if isinstance(description, dict) else None
        yield name, form if isinstance(form, str) else "of an unnamed format"


def _format_in(content: bytes, name: str) -> str:
    form = _parsed(content, name).get("format")
    return form if isinstance(form, str) else "of an unnamed format"


def _parsed(content: bytes, name: str) -> dict[str, object]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise LoaderError(Reason.CONVERSION_FAILED, f"{snippet(name)} is not a JSON object")
    return parsed


def _number(name: str, tensor: Tensor) -> float:
    """Read a scale. Refuse one that is not a single finite number."""
    if tensor.count != 1:
        refuse_format("scaled fp8, with a scale for each row or block", name)
    content = os.pread(tensor.fd, tensor.nbytes, tensor.offset)
    match tensor.dtype:
        case Dtype.F32:
            (value,) = struct.unpack("<f", content)
        case Dtype.F16:
            (value,) = struct.unpack("<e", content)
        case Dtype.BF16:
            (value,) = struct.unpack("<f", b"\0\0" + content)
        case _:
            refuse_format(f"scaled fp8, with a scale of {tensor.dtype.label}", name)
    if not math.isfinite(value):
        raise LoaderError(
            Reason.CONVERSION_FAILED, f"the scale {snippet(name)} is {value}, not a number"
        )
    return float(value)
