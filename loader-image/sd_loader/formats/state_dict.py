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

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "params",
    "net",
    "state_dict_ema",
    "model_ema",
    "params_ema",
    "ema",
)
"""Keys under which training programs put the weights, in the order of preference: averaged weights
come last."""
_PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "state_dict.", "model_state_dict.")
"""Prefixes that DistributedDataParallel, torch.compile and others give to each tensor's name."""
_EMBEDDINGS = "string_to_param"
_ALONE = "*"
"""The name that textual inversion gives to vectors without a name."""
_MOST_WIDTHS = 8
"""Maximum number of widths of a hypernetwork's layers. The layers of a width have two halves."""
_MAX_NESTING = 8
_LARGEST_NUMBER = 1 << 63
_MOST_SCALARS = 1000
_MOST_SHARING = 8
"""How many tensors may share a byte of the file, on average. Two tied weights share each byte."""


def split(content: object) -> tuple[dict[str, View], dict[str, str]]:
    """Split a checkpoint's content into its weights, and its other numbers and strings.

    Training programs put the weights under a key of their own, next to their state. Textual
    inversion puts its vectors under `string_to_param`, and hypernetworks put theirs under widths;
    these keys become a part of the names.
    """
    metadata: dict[str, str] = {}
    if isinstance(content, View):
        return {_ALONE: content}, metadata
    for _ in range(_MAX_NESTING):
        if not isinstance(content, dict):
            break
        metadata.update(_scalars(content))
        inner = _wrapped(content)
        if inner is None:
            return _checked(_views(content)), metadata
        content = inner
    raise LoaderError(Reason.NOT_A_MODEL, "the pickle holds no dictionary of tensors")


def bare_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without a prefix that each name has because the trained model was wrapped."""
    unwrapped = dict(tensors)
    while len(unwrapped) > 1:
        first = next(iter(unwrapped))
        prefix = next((prefix for prefix in _PREFIXES if first.startswith(prefix)), None)
        if prefix is None or not all(name.startswith(prefix) for name in unwrapped):
            break
        unwrapped = {name.removeprefix(prefix): tensor for name, tensor in unwrapped.items()}
    return unwrapped


def _wrapped(content: Mapping[object, object]) -> dict[str, object] | None:
    """The dictionary that the weights lie in. None if they lie in the content itself.

    Refuse a file whose weights lie in several dictionaries of unknown names.
    """
    known: dict[int, bool] = {}
    holders = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, dict) and _holds_tensors(value, known)
    }
    # A single number beside the weights, such as the loss, is not one of them.
    has_own = any(view.shape for view in _views(content).values())
    for key in _WRAPPERS[:1] if has_own else _WRAPPERS:
        if key in holders:
            return holders[key]
    if has_own or not holders:
        return None
    if len(holders) == 1:
        return next(iter(holders.values()))
    raise LoaderError(
        Reason.UNSUPPORTED_FORMAT,
        f"the weights lie under {', '.join(snippet(key, 20) for key in sorted(holders)[:4])}; a"
        f" model is read if its weights lie together, such as under {', '.join(_WRAPPERS[:4])}",
    )


def _holds_tensors(content: dict[str, object], known: dict[int, bool], depth: int = 0) -> bool:
    """Whether a dictionary has tensors, or a wrapper with tensors.

    known: the results for dictionaries that were looked at, by identity. Many keys may name the
    same dictionary, and a dictionary may contain itself.
    """
    if id(content) not in known:
        known[id(content)] = False
        known[id(content)] = (
            any(isinstance(value, View) for value in content.values())
            or isinstance(content.get(_EMBEDDINGS), dict)
            or (
                depth < _MAX_NESTING
                and any(
                    isinstance(inner, dict) and _holds_tensors(inner, known, depth + 1)
                    for inner in map(content.get, _WRAPPERS)
                )
            )
        )
    return known[id(content)]


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


def _views(content: Mapping[object, object]) -> dict[str, View]:
    views = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, View)
    }
    embeddings = content.get(_EMBEDDINGS)
    if isinstance(embeddings, dict):
        views |= _prefixed(f"{_EMBEDDINGS}.", embeddings)
    widths = [width for width in content if isinstance(width, int)]
    for width in widths[:_MOST_WIDTHS]:
        halves = content[width]
        for number, half in enumerate(halves[:2] if isinstance(halves, tuple | list) else ()):
            if isinstance(half, dict):
                views |= _prefixed(f"{width}.{number}.", half)
    return views


def _prefixed(prefix: str, content: Mapping[object, object]) -> dict[str, View]:
    return {f"{prefix}{name}": value for name, value in content.items() if isinstance(value, View)}


def _checked(views: dict[str, View]) -> dict[str, View]:
    if not views:
        raise LoaderError(Reason.NOT_A_MODEL, "the pickle holds no tensors")
    if len(views) > MAX_TENSORS:
        raise LoaderError(
            Reason.DAMAGED_FILE, f"{len(views)} tensors; at most {MAX_TENSORS} are read"
        )
    for name in views:
        check_name(name)
    return views


def _scalars(content: Mapping[object, object]) -> dict[str, str]:
    """Return the first 1000 numbers and strings as text. Training programs write about a dozen."""
    scalars = (
        (snippet(name), snippet(str(value)))
        for name, value in content.items()
        if isinstance(name, str)
        and (
            isinstance(value, str | float | bool)
            or (isinstance(value, int) and abs(value) < _LARGEST_NUMBER)
        )
    )
    return dict(islice(scalars, _MOST_SCALARS))


def _tensor(fd: int, name: str, view: View, records: Mapping[str, Record]) -> Tensor:
    storage = view.storage
    record = records.get(storage.key)
    if record is None or record.size != storage.nbytes:
        state = "missing" if record is None else f"{record.size} bytes long"
        raise LoaderError(
            Reason.DAMAGED_FILE,
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
