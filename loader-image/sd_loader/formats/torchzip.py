"""Reads checkpoints that torch.save writes since 1.6: a zip of a pickle and of its storages."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import pickle, state_dict
from sd_loader.formats.fileio import read_at
from sd_loader.formats.zipdir import Directory, Record, locate_members, read_directory
from sd_loader.snippet import snippet
from sd_loader.tensors import Tensor

_PICKLE = "data.pkl"
_STORAGES = "data/"
_SMALL_RECORD = 64
_VERSIONS = range(1, 11)
_NOTHING: Mapping[str, Record] = {}


def read_archive(
    fd: int, size: int, foreseen: Mapping[str, Record] = _NOTHING
) -> tuple[dict[str, Tensor], dict[str, str], dict[tuple[int, int], int]]:
    """Return the tensors, the metadata, and the CRC-32s by (offset, bytes) of a torch archive.

    foreseen: members whose local headers are not downloaded yet.
    """
    directory = read_directory(fd, size)
    root = _root(directory)
    records = _records(fd, directory, root, foreseen)
    _check_kind(fd, records)
    views, metadata = state_dict.split(_content(fd, records[_PICKLE]))
    storages = {
        name.removeprefix(_STORAGES): record
        for name, record in records.items()
        if name.startswith(_STORAGES)
    }
    checksums = {
        (record.offset, record.size): record.crc
        for record in storages.values()
        if record.crc is not None
    }
    return state_dict.place(fd, views, storages), metadata, checksums


def storages_of(directory: Directory) -> set[str]:
    """Return the names of the members that are storages."""
    root = _root(directory)
    return {member.name for member in directory.members if member.name.startswith(root + _STORAGES)}


def _root(directory: Directory) -> str:
    """Return the folder that contains all members of a torch archive, with a slash at its end."""
    names = [member.name for member in directory.members]
    root = names[0].partition("/")[0] + "/" if names else ""
    if root + _PICKLE not in names or not all(name.startswith(root) for name in names):
        shown = snippet(", ".join(names[:4]))
        raise LoaderError(
            Reason.NOT_A_MODEL,
            f"the file is a zip archive, but not one of torch's; it holds {shown}",
        )
    return root


def _records(
    fd: int, directory: Directory, root: str, foreseen: Mapping[str, Record]
) -> dict[str, Record]:
    """Return the members by their names below the root.

    After `torch.serialization.set_crc32_options(False)`, torch writes 0 as every checksum. In this
    case, the records have no checksum.
    """
    located = locate_members(fd, directory, lambda member: foreseen.get(member.name))
    records = {name.removeprefix(root): record for name, record in located.items()}
    if any(record.crc for record in records.values()):
        return records
    return {name: replace(record, crc=None) for name, record in records.items()}


def _check_kind(fd: int, records: Mapping[str, Record]) -> None:
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        raise LoaderError(
            Reason.UNSAFE_MODEL, "the file is a TorchScript archive: it contains a program"
        )
    byteorder = _small(fd, records, "byteorder", default=b"little")
    if byteorder != b"little":
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT, "its numbers are not stored in little-endian order"
        )
    version = _small(fd, records, "version", default=b"1").strip()
    if not version.isdigit() or int(version) not in _VERSIONS:
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"torch archive version {snippet(version.decode('ascii', 'replace'), 20)} is unknown",
        )


def _content(fd: int, record: Record) -> object:
    if record.size > pickle.MAX_BYTES:
        _refuse(f"its pickle is {record.size} bytes long; at most {pickle.MAX_BYTES} are read")
    content, end = pickle.load(_verified(fd, _PICKLE, record))
    if end != record.size:
        _refuse(f"a damaged pickle: bytes follow its end ({record.size - end} in all)")
    return content


def _small(fd: int, records: Mapping[str, Record], name: str, default: bytes) -> bytes:
    record = records.get(name)
    if record is None:
        return default
    if record.size > _SMALL_RECORD:
        _refuse(f"a damaged torch archive: {name} is {record.size} bytes long")
    return _verified(fd, name, record)


def _verified(fd: int, name: str, record: Record) -> bytes:
    data = read_at(fd, record.offset, record.size)
    if record.crc not in (None, zlib.crc32(data)):
        _refuse(f"the checksum of {name} in the zip archive is wrong: the file is damaged")
    return data


def _refuse(problem: str) -> NoReturn:
    raise LoaderError(Reason.DAMAGED_FILE, problem)
