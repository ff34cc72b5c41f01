"""Tensors in files: position, type, shape, and views. This module does not read their bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

PIECE = 256 * 1024
"""Number of elements that are processed at a time. They fit into the processor's cache."""


class Dtype(Enum):
    """A tensor's element type: its name in safetensors headers, and its size in bytes."""

    F64 = ("F64", 8)
    F32 = ("F32", 4)
    F16 = ("F16", 2)
    BF16 = ("BF16", 2)
    F8_E5M2 = ("F8_E5M2", 1)
    F8_E4M3 = ("F8_E4M3", 1)
    I64 = ("I64", 8)
    I32 = ("I32", 4)
    I16 = ("I16", 2)
    I8 = ("I8", 1)
    U64 = ("U64", 8)
    U32 = ("U32", 4)
    U16 = ("U16", 2)
    U8 = ("U8", 1)
    BOOL = ("BOOL", 1)

    def __init__(self, label: str, itemsize: int) -> None:
        self.label = label
        self.itemsize = itemsize

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.label.startswith(("F", "BF"))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in an open file."""

    fd: int
    dtype: Dtype
    shape: tuple[int, ...]

    offset: int
    """Position of its first byte in the file."""

    strides: tuple[int, ...] | None = None
    """Strides in elements. None if the tensor is contiguous."""

    scale: float | None = None
    """Factor of each stored element. None if the stored elements are the values themselves."""

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes when it is contiguous."""
        return self.count * self.dtype.itemsize

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensor itself as the only part, so that it can be read like a `Joined`."""
        return (self,)


@dataclass(frozen=True, slots=True)
class Joined:
    """One tensor that consists of the rows of several tensors of one type, in their order."""

    parts: tuple[Tensor, ...]

    @property
    def dtype(self) -> Dtype:
        """The element type of all parts."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the joined tensor."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


Source = Tensor | Joined
"""Where the elements of a tensor of the output come from."""


@dataclass(frozen=True)
class TensorFile:
    """An open file of named tensors. Its tensors are invalid once it is closed."""

    path: Path
    fd: int

    format: str
    """safetensors, or ckpt for a torch pickle."""

    tensors: Mapping[str, Tensor]

    metadata: Mapping[str, str] = field(default_factory=dict)
    """The safetensors `__metadata__`, or scalar values in a checkpoint."""

    left_out: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of entries of the metadata that are too long to be kept."""

    checksums: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """CRC-32 of ranges (offset, bytes) of the file, if the format has them."""

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides in elements, also if it is contiguous."""
    if tensor.strides is not None:
        return tensor.strides
    return tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))


def view(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], skip: int = 0) -> Tensor:
    """The same bytes with another shape and other strides, without the first `skip` elements."""
    moved = replace(
        tensor, shape=shape, offset=tensor.offset + skip * tensor.dtype.itemsize, strides=None
    )
    same = all(
        size == 1 or stride == usual
        for size, stride, usual in zip(shape, strides, strides_of(moved), strict=True)
    )
    return moved if same else replace(moved, strides=strides)


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """A range of the tensor's rows (its first dimension)."""
    strides = strides_of(tensor)
    return view(tensor, (stop - start, *tensor.shape[1:]), strides, start * strides[0])


def transposed(tensor: Tensor) -> Tensor:
    """The matrix with rows and columns exchanged."""
    return view(tensor, tensor.shape[::-1], strides_of(tensor)[::-1])


def pieces(tensor: Tensor, limit: int = PIECE) -> Iterator[Tensor]:
    """Cut the tensor into views of at most `limit` elements, in order."""
    if tensor.strides is None:
        tensor = view(tensor, (tensor.count,), (1,))
    if tensor.count <= limit:
        if tensor.count:
            yield tensor
        return
    row = tensor.count // tensor.shape[0]
    step = max(1, limit // row)
    for start in range(0, tensor.shape[0], step):
        part = rows(tensor, start, min(start + step, tensor.shape[0]))
        if row <= limit:
            yield part
        else:
            yield from pieces(view(part, part.shape[1:], strides_of(part)[1:]), limit)
