"""Views of tensors in files: the same bytes under another shape. No bytes are read here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from sd_loader.tensors import Tensor

PIECE = 256 * 1024
"""Elements that are held in memory at a time: few enough for the processor's cache."""


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides in elements, those of a contiguous one spelt out."""
    if tensor.strides is not None:
        return tensor.strides
    return tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))


def view(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], skip: int = 0) -> Tensor:
    """The tensor's bytes seen otherwise, from `skip` elements on."""
    seen = dataclasses.replace(
        tensor, shape=shape, offset=tensor.offset + skip * tensor.dtype.itemsize, strides=None
    )
    same = all(
        size == 1 or stride == usual
        for size, stride, usual in zip(shape, strides, strides_of(seen), strict=True)
    )
    return seen if same else dataclasses.replace(seen, strides=strides)


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Some of the tensor's rows (its first dimension)."""
    strides = strides_of(tensor)
    return view(tensor, (stop - start, *tensor.shape[1:]), strides, start * strides[0])


def transposed(tensor: Tensor) -> Tensor:
    """A matrix with rows and columns exchanged."""
    return view(tensor, tensor.shape[::-1], strides_of(tensor)[::-1])


def pieces(tensor: Tensor, limit: int = PIECE) -> Iterator[Tensor]:
    """Cut the tensor into views of at most `limit` elements, in the order of its elements."""
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
