"""Reads views of tensors whose elements are not consecutive in the file."""

from __future__ import annotations

import numpy as np

from sd_loader.convert.write.cast import Array, storage_dtype
from sd_loader.convert.write.fileio import read_into
from sd_loader.tensors import PIECE, Tensor, strides_of, view


def read_view(tensor: Tensor) -> Array:
    """Read the elements of a (small) view into a contiguous, flat array."""
    out = np.empty(tensor.shape, storage_dtype(tensor.dtype))
    _read_into(out, tensor)
    return out.reshape(-1)


def _read_into(out: Array, tensor: Tensor) -> None:
    strides = strides_of(tensor)
    reach = [(size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)]
    span = sum(reach) + 1
    if tensor.strides is None and out.flags.c_contiguous:
        _read_bytes(tensor, out)
    elif span <= PIECE:
        stored = np.empty(span, out.dtype)
        _read_bytes(tensor, stored)
        steps = tuple(stride * out.itemsize for stride in strides)
        out[...] = np.lib.stride_tricks.as_strided(stored, tensor.shape, steps)
    else:
        # The elements are too far apart for one read: halve the dimension with the widest spread.
        axis = reach.index(max(reach))
        half = tensor.shape[axis] // 2
        for start, stop in ((0, half), (half, tensor.shape[axis])):
            shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
            part = view(tensor, shape, strides, start * strides[axis])
            _read_into(out[(slice(None),) * axis + (slice(start, stop),)], part)


def _read_bytes(tensor: Tensor, out: Array) -> None:
    """Fill `out` with the bytes from the tensor's offset on."""
    read_into(tensor.fd, out.reshape(-1).view(np.uint8).data, tensor.offset)
