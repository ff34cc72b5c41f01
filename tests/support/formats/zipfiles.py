"""Builds zip archives byte by byte, so that their records can contradict each other."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Part:
    """A member of an archive; fields that are None get the correct value."""

    name: str
    data: bytes = b""
    """The bytes in the archive: already compressed if `method` names a compression."""
    method: int = 0
    flags: int = 0
    crc: int | None = None
    local_name: str | None = None
    local_size: int | None = None
    local_crc: int | None = None
    local_method: int | None = None
    header_at: int | None = None
    gap: bytes = b""
    """Bytes between this member and the next."""
    comment: bytes = b""
    size: int | None = None
    """The size of the uncompressed data."""
    mode: int = 0
    """The Unix mode."""
    extra: bytes = b""
    """The extra fields in the directory."""
    local_extra: bytes = b""
    """The extra fields in the member's own header."""


def extra_field(kind: int, content: bytes) -> bytes:
    """Return an extra field, which follows a member's name."""
    return struct.pack("<2H", kind, len(content)) + content


def unicode_path(name: str, other: str) -> bytes:
    """Return Info-ZIP's extra field that gives a member another name."""
    checksum = zlib.crc32(name.encode())
    return extra_field(0x7075, struct.pack("<BL", 1, checksum) + other.encode())


def deflated(name: str, content: bytes, **fields: Any) -> Part:
    """Return a member compressed with deflate; `fields` override its correct fields."""
    honest = {"method": 8, "size": len(content), "crc": zlib.crc32(content)}
    return Part(name, _packed(content), **{**honest, **fields})


# Cached, because dozens of archives have the same weights.
@lru_cache(maxsize=32)
def _packed(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def zip_bytes(
    parts: Iterable[Part], *, zip64: bool = False, comment: bytes = b"", prefix: bytes = b""
) -> bytes:
    """Return an archive of these members; `zip64` adds the end records that torch writes."""
    body, directory, count = bytearray(prefix), bytearray(), 0
    for part in parts:
        header_at = len(body) if part.header_at is None else part.header_at
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        body += _local(part, crc) + part.data + part.gap
        directory += _entry(part, crc, header_at)
        count += 1
    start, length = len(body), len(directory)
    if zip64:
        end64 = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, 30, 45, 0, 0, count, count, length, start
        )
        directory += end64 + struct.pack("<4sLQL", b"PK\x06\x07", 0, start + length, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, length, start, len(comment))
    return bytes(body + directory + end + comment)


def _local(part: Part, crc: int) -> bytes:
    name = (part.name if part.local_name is None else part.local_name).encode()
    stored = len(part.data) if part.local_size is None else part.local_size
    size = stored if part.size is None else part.size
    method = part.method if part.local_method is None else part.local_method
    crc = crc if part.local_crc is None else part.local_crc
    fields = (20, part.flags, method, 0, 0, crc, stored, size, len(name), len(part.local_extra))
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", *fields) + name + part.local_extra


def _entry(part: Part, crc: int, header_at: int) -> bytes:
    name, stored = part.name.encode(), len(part.data)
    size = stored if part.size is None else part.size
    fields = (20, 20, part.flags, part.method, 0, 0, crc, stored, size, len(name), len(part.extra))
    rest = (len(part.comment), 0, 0, part.mode << 16, header_at)
    return (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *fields, *rest) + name + part.extra + part.comment
    )
