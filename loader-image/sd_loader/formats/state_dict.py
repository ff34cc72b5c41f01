"""Finds the tensors of a checkpoint from the content of its pickle."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import islice

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.limits import MAX_TENSORS, check_name
from sd_loader.formats.pickle_objects import View
from sd_loader.formats.zipdir import Record
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

_NESTED = "state_dict"
_EMBEDDINGS = "string_to_param"
_MAX_NESTING = 8
_LARGEST_NUMBER = 1 << 63
_MOST_SCALARS = 1000
_MOST_SHARING = 8
"""How many tensors may share a byte of their file, on average. Tied weights share it twice."""


def split(content: object) -> tuple[dict[str, View], dict[str, str]]:
    """Split a checkpoint's content into its weights, and its other numbers and strings.

    Training programs put the weights under `state_dict`, next to their own state. Textual inversion
    puts its vectors under `string_to_param`; this prefix becomes a part of their names.
    """
    metadata: dict[str, str] = {}
    for _ in range(_MAX_NESTING):
        if not isinstance(content, dict):
            break
        metadata.update(_scalars(content))
        if not isinstance(content.get(_NESTED), dict):
            return _checked(_views(content)), metadata
        content = content[_NESTED]
    raise LoaderError(Reason.NOT_A_MODEL, "the pickle holds no dictionary of tensors")


def place(fd: int, views: Mapping[str, View], records: Mapping[str, Record]) -> dict[str, Tensor]:
    """Locate the tensors in the file. records: the storages in the file, by their keys."""
    tensors = {name: _tensor(fd, name, view, records) for name, view in views.items()}
    nbytes, size = sum(tensor.nbytes for tensor in tensors.values()), os.fstat(fd).st_size
    if nbytes > _MOST_SHARING * size:
        raise LoaderError(
            Reason.UNSAFE_MODEL,
            f"its tensors would take {nbytes} bytes, far more than the file's {size}: they repeat"
            " the same numbers many times",
        )
    return tensors


def _views(content: Mapping[str, object]) -> dict[str, View]:
    views = {name: value for name, value in content.items() if isinstance(value, View)}
    embeddings = content.get(_EMBEDDINGS)
    if isinstance(embeddings, dict):
        for name, value in embeddings.items():
            if isinstance(value, View):
                views[f"{_EMBEDDINGS}.{name}"] = value
    return views


def _checked(views: dict[str, View]) -> dict[str, View]:
    if not views:
        raise LoaderError(Reason.NOT_A_MODEL, "the pickle holds no tensors")
    if len(views) > MAX_TENSORS:
        raise LoaderError(
            Reason.NOT_A_MODEL, f"{len(views)} tensors; at most {MAX_TENSORS} are read"
        )
    for name in views:
        check_name(name)
    return views


def _scalars(content: Mapping[str, object]) -> dict[str, str]:
    """Return the first scalars. Training programs write about a dozen."""
    scalars = (
        (snippet(name), snippet(str(value)))
        for name, value in content.items()
        if isinstance(value, str | float | bool)
        or (isinstance(value, int) and abs(value) < _LARGEST_NUMBER)
    )
    return dict(islice(scalars, _MOST_SCALARS))


def _tensor(fd: int, name: str, view: View, records: Mapping[str, Record]) -> Tensor:
    storage = view.storage
    record = records.get(storage.key)
    if record is None or record.size != storage.nbytes:
        state = "missing" if record is None else f"{record.size} bytes long"
        raise LoaderError(
            Reason.NOT_A_MODEL,
            f"tensor {name}: its data {snippet(storage.key, 20)} should be"
            f" {storage.nbytes} bytes, but is {state}",
        )
    offset = record.offset + view.offset * view.dtype.itemsize
    strides = None if _is_contiguous(view) else view.strides
    return Tensor(fd, view.dtype, view.shape, offset, strides)


def _is_contiguous(view: View) -> bool:
    """Whether the elements are consecutive. The stride of a dimension of length 1 is ignored."""
    step = 1
    for length, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if length != 1 and stride != step:
            return math.prod(view.shape) == 0
        step *= length
    return True
