"""Products of small matrices in single precision, and a function that appends them to a file.

The product of two numbers in half precision is exact in single precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

from sd_loader.convert.write.cast import Array, cast
from sd_loader.convert.write.steps import Findings
from sd_loader.convert.write.strided_read import read_view
from sd_loader.tensors import Dtype, Tensor

_PIECE = 64 << 10
"""Maximum bytes of a write. The kernel would copy larger pieces more slowly."""


def read_single(tensor: Tensor, findings: Findings) -> Array:
    """Read a small tensor in single precision."""
    values = read_view(tensor)
    if tensor.strides is None:
        findings.read(tensor.fd, tensor.offset, values.data.cast("B"))
    single = np.empty(values.shape, "<f4")
    cast(values, tensor.dtype, Dtype.F32, single)
    return single.reshape(tensor.shape)


def kronecker_rows(left: Array, right: Array) -> Iterator[Array]:
    """The Kronecker product of two matrices, some rows at a time."""
    for row in left:
        yield np.kron(row, right)


def column_products(left: Array, right: Array) -> Iterator[Array]:
    """Products of each column of one matrix and each column of the other, one row at a time."""
    for one, other in zip(left, right, strict=True):
        yield np.outer(one, other)


def row_products(left: Array, right: Array) -> Iterator[Array]:
    """Products of each row of one matrix and each row of the other, some rows at a time."""
    for row in left:
        yield row * right


def append(fd: int, shape: tuple[int, ...], pieces: Iterable[Array]) -> Tensor:
    """Write a tensor in single precision to the end of a file. pieces: its rows, in order."""
    start = position = os.lseek(fd, 0, os.SEEK_END)
    for piece in pieces:
        content = np.ascontiguousarray(piece, "<f4").reshape(-1).view(np.uint8).data
        while content.nbytes:
            count = os.pwrite(fd, content[:_PIECE], position)
            position, content = position + count, content[count:]
    tensor = Tensor(fd, Dtype.F32, shape, start)
    if position != start + tensor.nbytes:
        raise ValueError(f"{position - start} bytes for a tensor of {shape}")
    return tensor
