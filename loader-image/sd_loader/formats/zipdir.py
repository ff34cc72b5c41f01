"""Reads the directories of zip archives strictly. An ambiguous archive is refused.

Two zip readers can read a crafted file differently: it may have data before or after the archive, a
local header that contradicts the directory, names that differ only in case, or overlapping members.
All of these are refused, so that the position of a member is unambiguous. Members are not read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.formats.limits import MAX_TENSORS
from sd_loader.snippet import snippet

MAX_MEMBERS = MAX_TENSORS + 100
MAX_DIRECTORY = 32 << 20

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_QUAD = struct.Struct("<Q")

STORED = 0
DEFLATED = 8
_DEFLATE_LEVEL = 0x0006
_HAS_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_ENCRYPTED = 0x0001
_LONGEST_DESCRIPTOR = 24
_ALIGNMENT = 64
_ZIP64 = 0x0001
_UNICODE_PATH = 0x7075
_IN_ZIP64 = 0xFFFFFFFF
_IN_ZIP64_SHORT = 0xFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the directory describes it."""

    name: str
    """A folder's name ends with a slash."""

    flags: int
    method: int
    crc: int

    size: int
    """Unpacked size in bytes."""

    stored_size: int
    """Size in the archive, in bytes."""

    header: int
    """Position of the member's local header."""

    mode: int
    """Unix file mode. 0 if the archive has none."""


@dataclass(frozen=True, slots=True)
class Directory:
    """An archive's directory."""

    members: Sequence[Member]
    """All members, in the order of the directory."""

    start: int
    """Position of the directory's first byte."""


@dataclass(frozen=True, slots=True)
class Record:
    """The position of a member's bytes in the file. The bytes of a deflated member are deflated."""

    offset: int
    size: int

    crc: int | None
    """CRC-32 of the unpacked bytes. None if the archive has no checksums."""


def read_directory(fd: int, size: int, *, folders: bool = False) -> Directory:
    """Read the directory of the archive in an open file of `size` bytes.

    folders: whether folders may be members, too.
    """
    count, length, start = _end_of(fd, size)
    if count > MAX_MEMBERS or length > MAX_DIRECTORY:
        _refuse(f"its directory has {count} members in {length} bytes, which is too many")
    data = read_at(fd, start, length)
    members, position = [], 0
    for _ in range(count):
        member, position = _entry(data, position, folders=folders)
        members.append(member)
    if position != length:
        _refuse("bytes after its directory's last entry")
    if len({member.name.casefold() for member in members}) != count:
        _refuse("two members have one name")
    return Directory(members, start)


def directory_start(fd: int, size: int) -> int:
    """Return the position of the directory of the archive in an open file of `size` bytes."""
    return _end_of(fd, size)[2]


def locate_members(
    fd: int,
    directory: Directory,
    foreseen: Callable[[Member], Record | None] = lambda _: None,
    *,
    packed: bool = False,
) -> dict[str, Record]:
    """Locate each member's bytes. Refuse hidden bytes and members that overlap.

    foreseen: returns the computed record of a member whose local header is not downloaded yet. Such
    a record must be checked by `confirm` later. packed: whether members may be deflated.
    """
    records: dict[str, Record] = {}
    position, slack = 0, 0
    for member in sorted(directory.members, key=lambda member: member.header):
        if not position <= member.header <= position + slack:
            _refuse(f"hidden bytes or an overlap before {snippet(member.name)}")
        record = foreseen(member) or _record(fd, member, packed=packed)
        position = record.offset + record.size
        slack = _LONGEST_DESCRIPTOR if member.flags & _HAS_DESCRIPTOR else 0
        if position > directory.start:
            _refuse(f"{snippet(member.name)} reaches into the directory")
        records[member.name] = record
    if not position <= directory.start <= position + slack:
        _refuse("hidden bytes before its directory")
    return records


def foresee(member: Member, following: int) -> Record | None:
    """Compute where a member's bytes lie if torch wrote the archive. None if they do not fit there.

    torch pads the local header so that the bytes begin at a multiple of 64. following: the position
    of the next local header, or of the directory.
    """
    _check_method(member, packed=False)
    start = member.header + _LOCAL.size + len(member.name.encode()) + _EXTRA.size
    wide = [value for value in (member.size, member.size, member.header) if value >= _IN_ZIP64]
    if wide:
        start += _EXTRA.size + len(wide) * _QUAD.size
    offset = -(-start // _ALIGNMENT) * _ALIGNMENT
    fits = 0 <= following - offset - member.size <= _LONGEST_DESCRIPTOR
    return Record(offset, member.size, member.crc) if fits else None


def confirm(fd: int, member: Member, foreseen: Record) -> None:
    """Refuse a member that does not lie at the position that `foresee` computed."""
    if _record(fd, member) != foreseen:
        _refuse(f"the header of {snippet(member.name)} is not where its bytes end")


def _end_of(fd: int, size: int) -> tuple[int, int, int]:
    """Read the directory's number of entries, length and position from the end of the file."""
    end_at = size - _END.size
    if end_at < 0:
        _refuse("no directory at the file's end: truncated")
    end = _END.unpack(read_at(fd, end_at, _END.size))
    signature, disk, first_disk, here, count, length, start, comment = end
    if signature != b"PK\x05\x06" or comment:
        _refuse(
            f"no directory at the file's end: truncated after {size} bytes, or bytes were added to"
            " it"
        )
    if (disk, first_disk) != (0, 0) or here != count:
        _refuse("it is one part of several")
    locator_at = end_at - _LOCATOR.size
    locator = read_at(fd, locator_at, _LOCATOR.size) if locator_at >= 0 else b""
    if not locator.startswith(b"PK\x06\x07"):
        if start + length != end_at:
            _refuse("its directory is not where the file's end says")
        return count, length, start
    _, _, end64_at, _ = _LOCATOR.unpack(locator)
    if end64_at + _END64.size != locator_at:
        _refuse("its zip64 directory is not where the file's end says")
    end64 = _END64.unpack(read_at(fd, end64_at, _END64.size))
    signature, rest, _, _, disk, first_disk, here64, count64, length64, start64 = end64
    if signature != b"PK\x06\x06" or rest != _END64.size - 12 or here64 != count64:
        _refuse("a damaged zip64 directory")
    if start64 + length64 != end64_at or (disk, first_disk) != (0, 0):
        _refuse("its zip64 directory is not where the file's end says")
    short = (count, _IN_ZIP64_SHORT, count64), (length, _IN_ZIP64, length64)
    for narrow, saturated, wide in (*short, (start, _IN_ZIP64, start64)):
        if narrow not in (saturated, wide):
            _refuse("its two directories contradict each other")
    return count64, length64, start64


def _entry(data: bytes, position: int, *, folders: bool) -> tuple[Member, int]:
    if len(data) - position < _ENTRY.size:
        _refuse("a directory that is cut off")
    fields = _ENTRY.unpack_from(data, position)
    signature, _, _, flags, method, _, _, crc, stored_size, size = fields[:10]
    name_length, extra_length, comment_length, disk, _, attributes, header = fields[10:]
    name_at = position + _ENTRY.size
    extra_at = name_at + name_length
    end = extra_at + extra_length
    if signature != b"PK\x01\x02" or comment_length or disk or end > len(data):
        _refuse("a damaged directory entry")
    name = _name(data[name_at:extra_at], folders=folders)
    extra = data[extra_at:end]
    if _UNICODE_PATH in dict(_extra_fields(extra)):
        _refuse(f"{snippet(name)} has another name for other readers")
    wide = _wide_values(extra, (size, stored_size, header))
    return Member(name, flags, method, crc, wide[0], wide[1], wide[2], attributes >> 16), end


def _name(raw: bytes, *, folders: bool) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("a member's name is not valid UTF-8")
    parts = (name.removesuffix("/") if folders else name).split("/")
    if not name.isprintable() or "\\" in name or not {"", ".", ".."}.isdisjoint(parts):
        _refuse(f"a member's name is not a plain path: {snippet(name)}")
    return name


def _wide_values(extra: bytes, values: tuple[int, int, int]) -> tuple[int, ...]:
    """Return size, stored size and header position. Large values are in a zip64 field."""
    fields = [content for kind, content in _extra_fields(extra) if kind == _ZIP64]
    if len(fields) > 1:
        _refuse("a damaged zip64 field")
    wide = fields[0] if fields else b""
    missing = values.count(_IN_ZIP64)
    if len(wide) < missing * _QUAD.size:
        _refuse("a zip64 field is missing")
    quads = iter(_QUAD.unpack_from(wide, index * _QUAD.size)[0] for index in range(missing))
    return tuple(next(quads) if value == _IN_ZIP64 else value for value in values)


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the extra fields of a member. Too few bytes for a field at the end are padding."""
    position = 0
    while len(extra) - position >= _EXTRA.size:
        kind, length = _EXTRA.unpack_from(extra, position)
        position += _EXTRA.size
        if length > len(extra) - position:
            _refuse("a damaged field after a member's name")
        yield kind, extra[position : position + length]
        position += length


def _check_method(member: Member, *, packed: bool) -> None:
    """Refuse a member that is stored in a way that the loader does not support."""
    name = snippet(member.name)
    if member.flags & _ENCRYPTED or member.method not in (
        (STORED, DEFLATED) if packed else (STORED,)
    ):
        expected = "only deflate is supported" if packed else "torch stores files uncompressed"
        raise LoaderError(
            Reason.UNSUPPORTED_FORMAT,
            f"{name} in the zip archive is compressed or encrypted; {expected}",
        )
    known_flags = _HAS_DESCRIPTOR | _UTF8 | (_DEFLATE_LEVEL if member.method == DEFLATED else 0)
    is_whole = member.method == DEFLATED or member.size == member.stored_size
    if member.flags & ~known_flags or not is_whole:
        _refuse(f"{name} is stored in an unknown way")


def _record(fd: int, member: Member, *, packed: bool = False) -> Record:
    """Check a member's local header against the directory, and locate the bytes after it."""
    shown = snippet(member.name)
    _check_method(member, packed=packed)
    name = member.name.encode()
    header = read_at(fd, member.header, _LOCAL.size + len(name))
    fields = _LOCAL.unpack_from(header)
    signature, _, flags, method, _, _, crc, stored_size, size, name_length, extra_length = fields
    if signature != b"PK\x03\x04" or (flags, method) != (member.flags, member.method):
        _refuse(f"the header of {shown} contradicts the directory")
    if name_length != len(name) or header[_LOCAL.size :] != name:
        _refuse(f"the header of {shown} gives another name")
    offset = member.header + len(header) + extra_length
    described_later = bool(flags & _HAS_DESCRIPTOR) and (crc, stored_size, size) == (0, 0, 0)
    if not described_later:
        extra = read_at(fd, offset - extra_length, extra_length)
        sizes = _wide_values(extra, (size, stored_size, 0))
        if crc != member.crc or sizes[:2] != (member.size, member.stored_size):
            _refuse(f"the header of {shown} gives another size or checksum")
    return Record(offset, member.stored_size, member.crc)


def _refuse(problem: str) -> NoReturn:
    raise LoaderError(Reason.DAMAGED_FILE, f"a damaged zip archive: {problem}")
