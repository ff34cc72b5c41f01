"""Reads checkpoints that torch.save wrote before 1.6: several pickles, then their storages.

The file begins with three pickles: a magic number, a version and a description of the writer's
machine. Then come the pickle of the content, and a pickle with the keys of the storages. The
storages follow in the order of these keys, each after its number of elements. Anything else in the
file is refused.
"""

from __future__ import annotations

from typing import NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import pickle, state_dict
from sd_loader.formats.fileio import read_at
from sd_loader.formats.limits import MAX_TENSORS
from sd_loader.formats.pickle_objects import Storage, is_count, refuse_damaged, storage
from sd_loader.formats.sniff import LEGACY_TORCH_MAGIC
from sd_loader.formats.zipdir import Record
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

_VERSION = 1001
_COUNT_BYTES = 8
_BUFFER = 1 << 16


def read_legacy(fd: int, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of an open file of `size` bytes that has the magic number."""
    stream = _Stream(fd, len(LEGACY_TORCH_MAGIC), size)
    _check_kind(pickle.read(stream), pickle.read(stream))
    storages = _Storages()
    content = pickle.read(stream, storages.resolve)
    keys = pickle.read(stream)
    views, metadata = state_dict.split(content)
    records = storages.locate(fd, _keys(keys), stream.position, size)
    return state_dict.place(fd, views, records), metadata


class _Stream:
    """The file's bytes from a position on, but at most as many as a pickle may have."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._used = 0
        self._next = start
        self._end = min(size, start + pickle.MAX_BYTES)

    @property
    def position(self) -> int:
        """Position of the next byte in the file."""
        return self._next - len(self._buffer) + self._used

    def read(self, size: int, /) -> bytes:
        """Read the next bytes, or fewer at the end. The size of one read is limited."""
        if size > pickle.MAX_BYTES:
            refuse_damaged(f"a text of {size} bytes")
        piece = self._take(size)
        if len(piece) == size or self._next == self._end:
            return piece
        self._fill(max(_BUFFER, size - len(piece)))
        return piece + self._take(size - len(piece))

    def readline(self) -> bytes:
        """Read up to and including the next newline."""
        pieces = []
        while True:
            newline = self._buffer.find(b"\n", self._used)
            pieces.append(self._take((newline + 1 or len(self._buffer)) - self._used))
            if newline >= 0 or self._next == self._end:
                return b"".join(pieces)
            self._fill(_BUFFER)

    def _take(self, size: int) -> bytes:
        piece = self._buffer[self._used : self._used + size]
        self._used += len(piece)
        return piece

    def _fill(self, size: int) -> None:
        """Read the next bytes into the buffer. The old content must be used up."""
        size = min(size, self._end - self._next)
        self._buffer = read_at(self._fd, self._next, size)
        self._used = 0
        self._next += size


class _Storages:
    """The storages that a pickle refers to. A storage may be a part of another one."""

    def __init__(self) -> None:
        self._whole: dict[str, Storage] = {}
        self._parts: dict[str, tuple[Storage, Storage, int]] = {}

    def resolve(self, identity: object) -> Storage:
        """Return the storage of a persistent id. The id's last element may select a part of it."""
        if not isinstance(identity, tuple) or len(identity) != 6:
            refuse_damaged("an unknown reference to data outside the pickle")
        whole = storage(identity[:5])
        if self._whole.setdefault(whole.key, whole) != whole:
            refuse_damaged(f"two descriptions of storage {snippet(whole.key, 20)}")
        if identity[5] is None:
            return whole
        part, start = _part(whole, identity[5])
        if self._parts.setdefault(part.key, (part, whole, start)) != (part, whole, start):
            refuse_damaged(f"two descriptions of storage {snippet(part.key, 20)}")
        return part

    def locate(self, fd: int, keys: list[str], position: int, size: int) -> dict[str, Record]:
        """Locate the storages, from `position` to the end of a file of `size` bytes."""
        if set(keys) != self._whole.keys() or len(set(keys)) != len(keys):
            _refuse("its list of storages differs from the storages in use")
        if not self._parts.keys().isdisjoint(keys):
            _refuse("a storage is a part of itself")
        records: dict[str, Record] = {}
        for key in keys:
            storage_in_use = self._whole[key]
            count = int.from_bytes(read_at(fd, position, _COUNT_BYTES), "little")
            if count != storage_in_use.count:
                _refuse(
                    f"storage {snippet(key, 20)} has {count} elements, not {storage_in_use.count}"
                )
            position += _COUNT_BYTES
            records[key] = Record(position, storage_in_use.nbytes, None)
            position += storage_in_use.nbytes
            if position > size:
                _refuse(f"truncated: it ends after {size} of at least {position} bytes")
        if position != size:
            _refuse(f"bytes follow the last storage ({size - position} in all)")
        for key, (part, whole, start) in self._parts.items():
            offset = records[whole.key].offset + start * whole.dtype.itemsize
            records[key] = Record(offset, part.nbytes, None)
        return records


def _part(whole: Storage, description: object) -> tuple[Storage, int]:
    if not isinstance(description, tuple) or len(description) != 3:
        refuse_damaged("an unknown reference to a part of a storage")
    key, start, count = description
    if not (isinstance(key, str) and is_count(start) and is_count(count)):
        refuse_damaged("an unknown reference to a part of a storage")
    if start + count > whole.count:
        refuse_damaged(f"a part reaches beyond its storage {snippet(whole.key, 20)}")
    return Storage(whole.dtype, key, count), start


def _check_kind(version: object, machine: object) -> None:
    if version != _VERSION:
        raise LoaderError(Reason.UNSUPPORTED_FORMAT, "an unknown version of torch's old format")
    if not isinstance(machine, dict):
        _refuse("a damaged torch file: it does not state what machine wrote it")
    if machine.get("little_endian") is not True:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT, "its numbers are not stored in little-endian order"
        )


def _keys(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        _refuse("its list of storages is not a list of keys")
    if len(value) > MAX_TENSORS:
        _refuse(f"{len(value)} storages; at most {MAX_TENSORS} are read")
    return value


def _refuse(problem: str) -> NoReturn:
    raise LoaderError(Reason.DAMAGED_FILE, problem)
