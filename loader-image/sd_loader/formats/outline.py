"""Downloads the outline of a model file: the bytes that describe its tensors, without the tensors.

These bytes are written into a sparse file of the full size, which can be read like the complete
file. In a torch archive, the local headers lie between the storages. Their ends are computed by
torch's own rule, and confirmed after the headers have been downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from sd_loader.bulk import write_at
from sd_loader.formats.safetensors import LENGTH_BYTES, LONGEST_HEADER
from sd_loader.formats.sniff import Container, identify
from sd_loader.formats.torchzip import storages_of
from sd_loader.formats.zipdir import (
    Directory,
    Member,
    Record,
    confirm,
    directory_start,
    foresee,
    read_directory,
)

TAIL_BYTES = 256 << 10
"""Size of the last read. It has an archive's directory and the small members before it."""
_MOST_SLACK = 1 << 16
_MOST_SMALL = 32 << 20
"""Largest size of all members that are not storages: twice the limit of a pickle."""
_GAP = 1 << 16
_PIECE = 4 << 20
"""Bytes of a header that are in memory at a time."""

Read = Callable[[int, int], bytes]
Range = tuple[int, int]


@dataclass(frozen=True)
class Outline:
    """A downloaded outline, with computed positions that must be confirmed later."""

    members: Mapping[str, Member] = field(default_factory=dict)
    """Storages whose local headers are not downloaded, by name."""

    foreseen: Mapping[str, Record] = field(default_factory=dict)
    """The computed positions of these storages."""

    def headers(self, needed: Callable[[Range], bool]) -> dict[str, Range]:
        """Return the local headers' ranges of all storages that are needed at least partly."""
        return {
            name: (self.members[name].header, record.offset)
            for name, record in self.foreseen.items()
            if needed((record.offset, record.offset + record.size))
        }

    def confirm(self, fd: int, name: str) -> None:
        """Check a downloaded local header. Refuse it if the computed position was wrong."""
        confirm(fd, self.members[name], self.foreseen[name])


def bring_outline(fd: int, head: bytes, size: int, read: Read) -> Outline | None:
    """Download a file's outline into an empty file. None if it cannot be downloaded alone.

    head: the first bytes of the file. read: reads a range of it.
    """
    os.ftruncate(fd, size)
    write_at(fd, head, 0)
    match identify(head, size):
        case Container.SAFETENSORS:
            end = LENGTH_BYTES + int.from_bytes(head[:LENGTH_BYTES], "little")
            if end <= min(size, LENGTH_BYTES + LONGEST_HEADER):
                for begin in range(len(head), end, _PIECE):
                    write_at(fd, read(begin, min(begin + _PIECE, end)), begin)
            return Outline()
        case Container.ZIP:
            return _archive(fd, len(head), size, read)
        case _:
            return None


def _archive(fd: int, head: int, size: int, read: Read) -> Outline | None:
    tail = max(head, size - TAIL_BYTES)
    write_at(fd, read(tail, size), tail)
    start = directory_start(fd, size)
    if head < start < tail:
        write_at(fd, read(start, tail), start)
    directory = read_directory(fd, size)
    storages = storages_of(directory)
    foreseen: dict[str, Record] = {}
    missing: list[Range] = []
    for member, following in _with_following(directory):
        if member.name in storages:
            record = foresee(member, following)
            if record is None:
                return None
            foreseen[member.name] = record
        elif following - member.header > member.size + _MOST_SLACK:
            return None
        else:
            missing.append((max(member.header, head), min(following, tail)))
    ranges = _joined(missing)
    if sum(end - begin for begin, end in ranges) > _MOST_SMALL:
        return None
    for begin, end in ranges:
        write_at(fd, read(begin, end), begin)
    members = {member.name: member for member in directory.members if member.name in foreseen}
    return Outline(members, foreseen)


def _with_following(directory: Directory) -> Iterator[tuple[Member, int]]:
    """Yield each member and the position where the next member or the directory begins."""
    ordered = sorted(directory.members, key=lambda member: member.header)
    for member, following in pairwise(ordered):
        yield member, following.header
    if ordered:
        yield ordered[-1], directory.start


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for begin, end in ranges:
        if begin >= end:
            continue
        if joined and begin - joined[-1][1] <= _GAP:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
