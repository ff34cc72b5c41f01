"""Reads safetensors headers strictly. A file that deviates from the format is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.formats.header import split_header
from sd_loader.formats.limits import MAX_RANK, MAX_TENSORS, check_name
from sd_loader.formats.metadata import Metadata
from sd_loader.snippet import json_snippet, snippet
from sd_loader.tensors import Dtype, Tensor

LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000
"""Maximum bytes of a header according to the format."""

MAX_HEADER = 4 << 20
"""Maximum bytes of a header besides its metadata. SDXL's has 0.3 MB. Parsing takes up to 48 times
as much memory: 200 MB for 4 MB."""

_DTYPES = {dtype.label: dtype for dtype in Dtype}
_QUANTIZED = {
    "F4": "fp4",
    "F6_E2M3": "fp6",
    "F6_E3M2": "fp6",
    "F8_E8M0": "mxfp8 or mxfp4",
}
"""Types of safetensors that only quantized weights and their scales have."""
_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"
_LARGEST = 1 << 64


def read_header(fd: int, size: int) -> tuple[dict[str, Tensor], Metadata]:
    """Return the tensors and the metadata of an open safetensors file of `size` bytes."""
    length = int.from_bytes(read_at(fd, 0, LENGTH_BYTES), "little")
    if length > LONGEST_HEADER:
        _refuse(f"a safetensors header of {length} bytes; the format allows {LONGEST_HEADER}")
    data_start = LENGTH_BYTES + length
    if data_start > size:
        _refuse(f"truncated: it ends after {size} of at least {data_start} bytes")
    header, metadata = _parse(fd, length)
    # `split_header` has taken out metadata that is a table.
    if (other := header.pop(_METADATA, None)) not in (None, {}):
        _refuse(f"the safetensors metadata is not a table of strings: {json_snippet(other, 20)}")
    if not header:
        raise LoaderError(Reason.NOT_A_MODEL, "a safetensors file without tensors")
    if len(header) > MAX_TENSORS:
        _refuse(f"{len(header)} tensors; at most {MAX_TENSORS} are read")
    tensors = {name: _tensor(fd, name, entry, data_start) for name, entry in header.items()}
    _check_layout(tensors, data_start, size)
    return tensors, metadata


def _parse(fd: int, length: int) -> tuple[dict[str, object], Metadata]:
    try:
        text, metadata = split_header(fd, LENGTH_BYTES, length, MAX_HEADER)
        header = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise LoaderError(
            Reason.DAMAGED_FILE, f"a damaged safetensors header: {snippet(str(error))}"
        ) from None
    if not isinstance(header, dict):
        _refuse("a safetensors header that is not a JSON object")
    return header, metadata


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _whole(text: str) -> int:
    if text.startswith("-"):  # Includes -0, which the safetensors library refuses, too.
        raise ValueError(f"sizes are whole numbers, not {text}")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _tensor(fd: int, name: str, entry: object, data_start: int) -> Tensor:
    check_name(name)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        _refuse(f"tensor {name}: its fields are not exactly dtype, shape and data_offsets")
    dtype = _dtype(name, entry["dtype"])
    shape = _sizes(name, entry["shape"])
    offsets = _sizes(name, entry["data_offsets"])
    if len(shape) > MAX_RANK:
        _refuse(f"tensor {name}: {len(shape)} dimensions; at most {MAX_RANK} are read")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(f"tensor {name}: data_offsets are not a range")
    tensor = Tensor(fd, dtype, shape, data_start + offsets[0])
    if tensor.nbytes != offsets[1] - offsets[0]:
        _refuse(
            f"tensor {name}: dtype and shape need {tensor.nbytes} bytes, but data_offsets have"
            f" {offsets[1] - offsets[0]}"
        )
    return tensor


def _dtype(name: str, label: object) -> Dtype:
    dtype = _DTYPES.get(label) if isinstance(label, str) else None
    if dtype is not None:
        return dtype
    if isinstance(label, str) and label in _QUANTIZED:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"the weights are quantized ({_QUANTIZED[label]}), which is not supported: use a"
            f" version of the model in fp16, bf16 or fp32 (seen: {snippet(name)})",
        )
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT, f"tensor {name}: dtype {json_snippet(label, 20)} is unknown"
    )


def _sizes(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(n) is int and n < _LARGEST for n in values):
        _refuse(f"tensor {name}: shape and offsets must be lists of whole numbers of 64 bits")
    return tuple(values)


def _check_layout(tensors: Mapping[str, Tensor], data_start: int, size: int) -> None:
    """Refuse tensors that leave holes, overlap, or do not end where the file ends."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: _extent(item[1])):
        if tensor.offset != position:
            _refuse(f"tensor {name}: a hole or an overlap before its data")
        position += tensor.nbytes
    if size < position:
        _refuse(f"truncated: it ends after {size} of {position} bytes")
    if size > position:
        _refuse(f"bytes follow the last tensor ({size - position} in all)")


def _extent(tensor: Tensor) -> tuple[int, int]:
    return tensor.offset, tensor.nbytes


def _refuse(problem: str) -> NoReturn:
    raise LoaderError(Reason.DAMAGED_FILE, problem)
