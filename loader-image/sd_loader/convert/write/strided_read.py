"""Reads views of tensors piece by piece, however their elements lie in the file."""

from __future__ import annotations

import numpy as np

from sd_loader.convert.write.cast import Array, storage_dtype
from sd_loader.convert.write.fileio import read_into
from sd_loader.convert.write.views import PIECE, strides_of, view
from sd_loader.tensors import Tensor


def read(tensor: Tensor, limit: int = PIECE) -> Array:
    """The elements of a (small) view, contiguous and flat."""
    out = np.empty(tensor.shape, storage_dtype(tensor.dtype))
    _read_into(out, tensor, limit)
    return out.reshape(-1)


def _read_into(out: Array, tensor: Tensor, limit: int) -> None:
    strides = strides_of(tensor)
    reach = [(size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)]
    span = sum(reach) + 1
    if tensor.strides is None and out.flags.c_contiguous:
        _read_bytes(tensor, out)
    elif span <= limit:
        lying = np.empty(span, out.dtype)
        _read_bytes(tensor, lying)
        steps = tuple(stride * out.itemsize for stride in strides)
        out[...] = np.lib.stride_tricks.as_strided(lying, tensor.shape, steps)
    else:
        # Too far apart to be read at once: halve along the dimension that spreads them most.
        axis = reach.index(max(reach))
        half = tensor.shape[axis] // 2
        for start, stop in ((0, half), (half, tensor.shape[axis])):
            shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
            part = view(tensor, shape, strides, start * strides[axis])
            _read_into(out[(slice(None),) * axis + (slice(start, stop),)], part, limit)


def _read_bytes(tensor: Tensor, out: Array) -> None:
    """Fill `out` with the bytes from the tensor's offset on."""
    read_into(tensor.fd, out.reshape(-1).view(np.uint8).data, tensor.offset)
