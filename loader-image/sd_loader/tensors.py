"""Tensors as they lie in files: where, of which type and shape. No bytes are read here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType


class Dtype(Enum):
    """A tensor's element type: the name in safetensors headers and the size in bytes."""

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
        """Whether a change of precision applies to it."""
        return self.label.startswith(("F", "BF"))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in an open file.

    offset: first byte in the file. strides: in elements, None where the tensor is contiguous.
    """

    fd: int
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when written contiguously."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """An open file of named tensors; closing it invalidates its tensors.

    format: safetensors, or ckpt for a torch pickle. metadata: the safetensors `__metadata__`, or
    scalar values found beside a checkpoint's tensors. checksums: CRC-32 of ranges (offset, bytes)
    of the file, where the format has them; whoever reads such a range whole can compare.
    """

    path: Path
    fd: int
    format: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[tuple[int, int], int] = field(default_factory=dict)

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
