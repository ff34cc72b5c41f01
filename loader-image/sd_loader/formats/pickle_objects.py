"""Interprets the calls and references in a model's pickle. It does not call anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.limits import MAX_RANK
from sd_loader.formats.pickle_names import (
    DEFAULT_DICTIONARY,
    DICTIONARIES,
    DTYPES,
    PARAMETER_DICTIONARY,
    PERMITTED,
    REBUILD_FROM_TYPE,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    REBUILD_TENSOR_V2,
    REBUILD_TENSOR_V3,
    SIZE,
    STORAGES,
    UNSUPPORTED,
    Name,
)
from sd_loader.snippet import snippet
from sd_loader.tensors import Dtype

_REBUILD_ARGUMENTS = {REBUILD_TENSOR: 4, REBUILD_TENSOR_V2: 6, REBUILD_TENSOR_V3: 7}
_LARGEST = 1 << 62


class Opaque:
    """An object that is not a weight. Its content is dropped."""

    __slots__ = ()


OPAQUE = Opaque()


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers outside the pickle."""

    dtype: Dtype
    key: str
    """The name by which the pickle refers to it."""

    count: int
    """How many numbers it has."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a view of a storage."""

    storage: Storage
    dtype: Dtype

    offset: int
    """Position of its first element in the storage, in elements."""

    shape: tuple[int, ...]

    strides: tuple[int, ...]
    """In elements."""


class Parameters(dict[str, object]):
    """A ParameterDict: a dictionary that is pickled as a module, with its entries in the state."""

    def set_state(self, state: object) -> None:
        """Take the entries from the state, and ignore everything else in it."""
        entries = state.get("_parameters") if isinstance(state, dict) else None
        if isinstance(entries, dict):
            self.update(entries)


def permitted(module: str, name: str) -> Name:
    """Return the `Name` for a module and name. Refuse a name that is not permitted."""
    # The same object is returned every time, to save memory.
    permitted_name = PERMITTED.get((module, name))
    if permitted_name is None:
        refuse_unsafe(f"it refers to {snippet(str(Name(module, name)))}, which no model needs")
    return permitted_name


def outcome(function: Name, arguments: tuple[Any, ...]) -> object:
    """Return the result that a call would have: a dictionary, a tensor, a size, or OPAQUE."""
    if function in DICTIONARIES:
        if arguments and function != DEFAULT_DICTIONARY:
            refuse_damaged("a dictionary made from other objects")
        return {}
    if function == PARAMETER_DICTIONARY:
        return Parameters()
    if function in _REBUILD_ARGUMENTS:
        return _view(function, arguments)
    if function in REBUILD_PARAMETER or function == SIZE:
        if not arguments:
            refuse_damaged("a call lacks its arguments")
        return arguments[0]
    if function == REBUILD_FROM_TYPE:
        return _view_of_type(arguments)
    if function in UNSUPPORTED:
        _refuse_unsupported(function)
    return OPAQUE


def storage(identity: object) -> Storage:
    """Return the storage that a persistent id means."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        refuse_damaged("an unknown reference to data outside the pickle")
    _, kind, key, location, count = identity
    if not isinstance(kind, Name) or kind not in STORAGES:
        _refuse_unsupported(kind)
    if not (isinstance(key, str) and isinstance(location, str) and is_count(count)):
        refuse_damaged("an unknown reference to data outside the pickle")
    return Storage(STORAGES[kind], key, count)


def _view_of_type(arguments: tuple[Any, ...]) -> View:
    """A tensor with attributes or of a subclass: (function, type, arguments, state)."""
    if len(arguments) != 4:
        refuse_damaged("a tensor's description is incomplete")
    function, _, inner, _ = arguments
    if function not in _REBUILD_ARGUMENTS or not isinstance(inner, tuple):
        refuse_damaged("a tensor's description is incomplete")
    return _view(function, inner)


def _view(function: Name, arguments: tuple[Any, ...]) -> View:
    required = _REBUILD_ARGUMENTS[function]
    if not required <= len(arguments) <= required + 1 or not isinstance(arguments[0], Storage):
        refuse_damaged("a tensor's description is incomplete")
    source, offset, shape, strides = arguments[:4]
    if len(arguments) > required and arguments[required]:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, "a tensor is stored conjugated or negated")
    dtype, count = source.dtype, source.count
    if function == REBUILD_TENSOR_V3:
        dtype = _dtype(arguments[6])
        count = source.nbytes // dtype.itemsize
    if not (is_count(offset) and _are_sizes(shape) and _are_sizes(strides)):
        refuse_damaged("a tensor's offset, shape or strides are not sizes")
    if len(shape) != len(strides):
        refuse_damaged("a tensor's shape and strides differ in length")
    elements = math.prod(shape)
    end = offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if elements > count or (elements and end > count):
        refuse_damaged(f"a tensor reaches beyond its storage {snippet(source.key, 20)}")
    return View(source, dtype, offset, shape, strides)


def _dtype(name: object) -> Dtype:
    dtype = DTYPES.get(name) if isinstance(name, Name) else None
    if dtype is None:
        _refuse_unsupported(name)
    return dtype


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 to below 2**62."""
    return type(value) is int and 0 <= value < _LARGEST


def _are_sizes(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_RANK and all(map(is_count, value))


def refuse_unsafe(problem: str) -> NoReturn:
    """Refuse a pickle that could run code in another reader."""
    raise LoaderError(Reason.UNSAFE_MODEL, f"the pickle is refused: {problem}")


def refuse_damaged(problem: str) -> NoReturn:
    """Refuse a damaged pickle."""
    raise LoaderError(Reason.DAMAGED_FILE, f"a damaged pickle: {problem}")


def _refuse_unsupported(kind: object) -> NoReturn:
    name = str(kind) if isinstance(kind, Name) else "an unknown kind"
    raise LoaderError(Reason.UNSUPPORTED_FORMAT, f"tensors stored as {name} are not supported")
