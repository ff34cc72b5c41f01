"""Builds files in torch's format from before 1.6 by hand, so that each section can be wrong.

A function that pushes something returns pickle instructions, as in `hostile.pickles`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.hostile import pickles as hostile

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
VERSION = pickle.dumps(1001, protocol=2)
MACHINE = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
NONE = b"N"


def number(value: int) -> bytes:
    """Push an integer (LONG1)."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(key: str, count: int, kind: str = "FloatStorage", part: bytes = NONE) -> bytes:
    """Push the storage with this key; `part` is the last element of its reference."""
    return (
        hostile.arguments(
            hostile.text("storage"),
            hostile.name("torch", kind),
            hostile.text(key),
            hostile.text("cpu"),
            number(count),
            part,
        )
        + b"Q"
    )


def part(key: str, start: int, count: int) -> bytes:
    """Push the description of a part of a storage."""
    return hostile.arguments(hostile.text(key), number(start), number(count))


def tensor(source: bytes, shape: Sequence[int], offset: int = 0) -> bytes:
    """Push a contiguous tensor that uses this storage."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.insert(0, step)
        step *= length
    return hostile.call(
        hostile.name("torch._utils", "_rebuild_tensor_v2"),
        source,
        number(offset),
        hostile.arguments(*map(number, shape)),
        hostile.arguments(*map(number, strides)),
        b"\x89",
        hostile.call(hostile.name("collections", "OrderedDict")),
    )


def content(tensors: Mapping[str, bytes]) -> bytes:
    """Return the pickle of a dictionary of tensors."""
    items = b"".join(hostile.text(name) + value for name, value in tensors.items())
    return hostile.pickled(b"}(", items, b"u")


def stored(count: int, data: bytes) -> bytes:
    """Return the section of a storage: its number of elements, then its bytes."""
    return struct.pack("<Q", count) + data


@dataclass(frozen=True)
class Legacy:
    """A file with the tensors `weight` (3 numbers) and `bias` (2 numbers) by default."""

    version: bytes = VERSION
    machine: Any = field(default_factory=lambda: MACHINE)
    content: bytes = content(
        {"weight": tensor(storage("0", 3), [3]), "bias": tensor(storage("1", 2), [2])}
    )
    keys: Any = ("0", "1")
    storages: tuple[bytes, ...] = (
        stored(3, struct.pack("<3f", 1, 2, 3)),
        stored(2, struct.pack("<2f", 4, 5)),
    )
    rest: bytes = b""

    def sections(self) -> list[bytes]:
        """Return the sections of the file in order."""
        keys = list(self.keys) if isinstance(self.keys, tuple) else self.keys
        machine, listed = (pickle.dumps(it, protocol=2) for it in (self.machine, keys))
        return [MAGIC, self.version, machine, self.content, listed, *self.storages, self.rest]

    def __bytes__(self) -> bytes:
        return b"".join(self.sections())
