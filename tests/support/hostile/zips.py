"""Torch archives that two zip readers read differently, or that torch would not write.

The malicious ones contain good weights for one reader and code for the other.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

from tests.support.formats.zipfiles import Part, deflated, extra_field, unicode_path, zip_bytes
from tests.support.hostile.opcodes import EVIL, GOOD, NUMBERS
from tests.support.hostile.samples import DAMAGED, UNKNOWN, UNSAFE, Sample, Samples

PICKLE = Part("archive/data.pkl", GOOD)
WEIGHT = Part("archive/data/0", NUMBERS["0"])
VERSION = Part("archive/version", b"3\n")
HIDDEN = Part("archive/data.pkl", EVIL)
_END = 22
_ENTRY = 46


def packed(*parts: Part, **options: object) -> bytes:
    """Return an archive of good weights and these members."""
    return zip_bytes([PICKLE, WEIGHT, *parts, VERSION], **options)  # type: ignore[arg-type]


def edited(content: bytes, at: int, layout: str, *values: object) -> bytes:
    """Return the file with packed values at an offset; a negative offset counts from the end."""
    at = at % len(content)
    new = struct.pack(layout, *values)
    return content[:at] + new + content[at + len(new) :]


def first_entry(content: bytes) -> int:
    """Return the offset of the archive's directory."""
    return int(struct.unpack("<L", content[-6:-2])[0])


def local_only(part: Part) -> bytes:
    """Return a member without its entry in the directory."""
    whole = zip_bytes([part])
    return whole[: first_entry(whole)]


def nested(part: Part) -> bytes:
    """Return a complete archive of this member."""
    return zip_bytes([part, VERSION])


GOOD_FILE = packed()
_WIDE = packed(zip64=True)

_MALICIOUS: dict[str, tuple[bytes, str, str]] = {
    "two pickles, code last": (packed(HIDDEN), "one name", "archive"),
    "two pickles, code first": (
        zip_bytes([HIDDEN, PICKLE, WEIGHT, VERSION]), "one name", "any member",
    ),
    "a pickle in capitals": (
        packed(Part("archive/DATA.PKL", EVIL)), "one name", "extracted",
    ),
    "a root in capitals": (
        packed(Part("ARCHIVE/data.pkl", EVIL)), "one name", "extracted",
    ),
    "a second root": (packed(Part("other/data.pkl", EVIL)), "not one of torch's", "extracted"),
    "a pickle beside the root": (packed(Part("data.pkl", EVIL)), "not one of torch's", "extracted"),
    "a pickle by way of dots": (
        packed(Part("archive/x/../data.pkl", EVIL)), "not a plain path", "extracted",
    ),
    "a pickle by way of a dot": (
        packed(Part("archive/./data.pkl", EVIL)), "not a plain path", "extracted",
    ),
    "a pickle by way of two slashes": (
        packed(Part("archive//data.pkl", EVIL)), "not a plain path", "extracted",
    ),
    "a pickle by way of a backslash": (
        packed(Part("archive\\data.pkl", EVIL)), "not a plain path", "extracted",
    ),
    "a pickle by its Unicode path": (
        packed(
            Part("archive/data/1", EVIL, extra=unicode_path("archive/data/1", "archive/data.pkl"))
        ), "another name", "any member",
    ),
    "a name that ends early": (
        packed(Part("archive/data.pkl\0.txt", EVIL)), "not a plain path", "archive",
    ),
    "another pickle by its local name": (
        packed(Part("archive/data/1", EVIL, local_name="archive/data.pkl")), "another name",
        "local headers",
    ),
    "a member that the directory lacks": (
        zip_bytes([replace(PICKLE, gap=local_only(HIDDEN)), WEIGHT, VERSION]), "hidden bytes",
        "local headers",
    ),
    "a member before the first": (
        zip_bytes([PICKLE, WEIGHT, VERSION], prefix=local_only(HIDDEN)), "hidden bytes",
        "local headers",
    ),
    "a member before the directory": (
        packed(replace(VERSION, name="archive/x", gap=local_only(HIDDEN))), "hidden bytes",
        "local headers",
    ),
    "an archive after the archive": (
        GOOD_FILE + nested(HIDDEN), "hidden bytes|not where", "archive",
    ),
    "an archive in the comment": (
        packed(comment=nested(HIDDEN)), "hidden bytes|added to|not where|contradict", "archive",
    ),
    "a pickle in the comment": (packed(comment=EVIL), "added to", "carved"),
    "a pickle in a member's comment": (
        packed(replace(VERSION, name="archive/x", comment=EVIL)), "damaged directory entry",
        "carved",
    ),
    "a pickle after the end": (GOOD_FILE + EVIL, "added to", "carved"),
    "a pickle between members": (
        zip_bytes([PICKLE, replace(WEIGHT, gap=EVIL), VERSION]), "hidden bytes", "carved",
    ),
    "a shell script before it": (
        zip_bytes([PICKLE, WEIGHT, VERSION], prefix=b"#!/bin/sh\ntouch canary\nexit 0\n"),
        "plain text|of an unknown kind", "run",
    ),
    "a Python program of its own": (
        packed(Part("__main__.py", b"open('canary', 'w').close()")), "not one of torch's",
        "python",
    ),
}  # fmt: skip

_END_FIELDS = {
    "of another disk": edited(GOOD_FILE, -18, "<H", 1),
    "that begins on another disk": edited(GOOD_FILE, -16, "<H", 1),
    "with entries on other disks": edited(GOOD_FILE, -14, "<H", 2),
    "that counts one entry less": edited(GOOD_FILE, -14, "<2H", 2, 2),
    "that counts one entry more": edited(GOOD_FILE, -14, "<2H", 4, 4),
    "that counts 65,535 entries": edited(GOOD_FILE, -14, "<2H", 0xFFFF, 0xFFFF),
    "that is shorter than its entries": edited(GOOD_FILE, -10, "<L", 60),
    "that lies behind the file": edited(GOOD_FILE, -6, "<L", 0xFFFFFF00),
    "that lies at the beginning": edited(GOOD_FILE, -6, "<L", 0),
    "whose end has a comment too few": edited(GOOD_FILE, -2, "<H", 9),
    "whose end stands twice": GOOD_FILE + GOOD_FILE[-_END:],
    "whose wide end lies elsewhere": edited(_WIDE, -34, "<Q", 7),
    "whose wide end lies behind 2**63": edited(_WIDE, -34, "<Q", 2**64 - 1),
    "whose wide end has another count": edited(_WIDE, -66, "<2Q", 4, 4),
    "whose wide end counts 2**40 entries": edited(_WIDE, -66, "<2Q", 1 << 40, 1 << 40),
    "whose wide end has another length": edited(_WIDE, -50, "<Q", 1),
    "whose wide end is of another version": edited(_WIDE, -94, "<Q", 2**40),
    "whose wide end has no signature": edited(_WIDE, -98, "<4s", b"PK\6\7"),
    "whose wide end is on another disk": edited(_WIDE, -82, "<L", 1),
}


def _entry(at: int, layout: str, *values: object) -> bytes:
    """Return a good archive with one value of the first directory entry changed."""
    return edited(GOOD_FILE, first_entry(GOOD_FILE) + at, layout, *values)


def _local(at: int, layout: str, *values: object) -> bytes:
    """Return a good archive with one value in the second member's local header changed."""
    return edited(GOOD_FILE, len(local_only(PICKLE)) + at, layout, *values)


_WIDE_FIELD = extra_field(1, struct.pack("<Q", len(WEIGHT.data)))
_DIRECTORY = {
    "without a signature": _entry(0, "<4s", b"PK\1\3"),
    "with a name of 64 KB": _entry(28, "<H", 0xFFFF),
    "with fields of 64 KB": _entry(30, "<H", 0xFFFF),
    "on another disk": _entry(34, "<H", 1),
    "with an unknown flag": _entry(8, "<H", 0x2000),
    "with a size of 4 GB and no wide field": _entry(24, "<L", 0xFFFFFFFF),
    "whose header lies in another's data": _entry(42, "<L", 8),
    "whose header lies behind the file": _entry(42, "<L", 0xFFFFFFF0),
    "with a name that is no text": _entry(_ENTRY, "<B", 0xFF),
    "with an empty name": packed(Part("")),
    "with a line break in its name": packed(Part("archive/data/1\n", b"x")),
    "with a folder's name": packed(Part("archive/data/")),
    "with an absolute name": packed(Part("/archive/data/1", b"x")),
    "that climbs out": packed(Part("archive/../../x", b"x")),
    "with two wide fields": packed(Part("archive/data/1", b"x", extra=_WIDE_FIELD * 2)),
    "with a wide field that is cut off": packed(
        Part("archive/data/1", b"x", extra=struct.pack("<2H", 1, 8) + b"1234")
    ),
}
_HEADERS = {
    "without a signature": _local(0, "<4s", b"PK\3\5"),
    "with other flags": _local(6, "<H", 0x0800),
    "of another method": _local(8, "<H", 8),
    "with another checksum": _local(14, "<L", 1),
    "with another size": _local(22, "<L", 11),
    "with another packed size": _local(18, "<L", 11),
    "with a name one longer": _local(26, "<H", len(WEIGHT.name) + 1),
    "with fields that swallow the data": _local(28, "<H", 12),
    "with fields beyond the file": _local(28, "<H", 0xFFFF),
    "that is another member's": packed(replace(WEIGHT, name="archive/data/1", header_at=0)),
    "with a wide size of another length": packed(
        Part(
            "archive/data/1", b"x", local_size=0xFFFFFFFF,
            local_extra=extra_field(1, struct.pack("<2Q", 9, 9)),
        )
    ),
}  # fmt: skip
_UNREADABLE = {
    f"packed by {what}": packed(Part("archive/data/1", b"x", method=method))
    for what, method in (
        ("deflate", 8), ("deflate64", 9), ("bzip2", 12), ("LZMA", 14), ("Zstandard", 93),
        ("XZ", 95), ("AES", 99),
    )
} | {"encrypted": packed(Part("archive/data/1", b"x", flags=1))}  # fmt: skip
_CONTENT: Samples = {
    "a pickle of another checksum": Sample(
        zip_bytes([replace(PICKLE, crc=1), WEIGHT, VERSION]), "checksum of data.pkl"
    ),
    "a pickle with one bit flipped": Sample(
        zip_bytes(
            [
                Part(PICKLE.name, GOOD[:-9] + b"\0" + GOOD[-8:], crc=zlib.crc32(GOOD)),
                WEIGHT, VERSION,
            ]
        ), "checksum of data.pkl",
    ),
    "no pickle": Sample(zip_bytes([WEIGHT, VERSION]), "not one of torch's"),
    "no members": Sample(zip_bytes([]), "an empty zip archive"),
    "an empty pickle": Sample(zip_bytes([Part(PICKLE.name), WEIGHT]), "cut off"),
    "numbers that are missing": Sample(zip_bytes([PICKLE, VERSION]), "missing"),
    "numbers too few": Sample(
        zip_bytes([PICKLE, Part(WEIGHT.name, b"\0" * 8), VERSION]), "but is 8 bytes long"
    ),
    "numbers too many": Sample(
        zip_bytes([PICKLE, Part(WEIGHT.name, b"\0" * 16), VERSION]), "but is 16 bytes long"
    ),
    "big-endian numbers": Sample(
        packed(Part("archive/byteorder", b"big")), "little-endian", UNKNOWN
    ),
    "a version that is no number": Sample(
        zip_bytes([PICKLE, WEIGHT, Part("archive/version", b"\xff")]), "is unknown", UNKNOWN
    ),
    "a version of the future": Sample(
        zip_bytes([PICKLE, WEIGHT, Part("archive/version", b"999")]), "is unknown", UNKNOWN
    ),
    "a version in other digits": Sample(
        zip_bytes([PICKLE, WEIGHT, Part("archive/version", "\u00b3".encode())]), "unknown", UNKNOWN
    ),
    "TorchScript's code": Sample(
        packed(Part("archive/code/__torch__.py", b"x")), "TorchScript", UNSAFE
    ),
    "TorchScript's constants": Sample(
        packed(Part("archive/constants.pkl", b"x")), "TorchScript", UNSAFE
    ),
}  # fmt: skip


def _cuts() -> Samples:
    """Return samples of an archive that is cut off, one for each of its records."""
    ends = {
        "its first header": 30,
        "its pickle": len(local_only(PICKLE)),
        "its numbers": first_entry(GOOD_FILE),
        "its directory": len(GOOD_FILE) - _END,
        "its end": len(GOOD_FILE) - 1,
    }
    return {
        f"cut off after {what}": Sample(GOOD_FILE[:end], "truncated") for what, end in ends.items()
    }


def _damaged(what: str, table: dict[str, bytes]) -> Samples:
    words = "damaged|truncated|not where|torch's|one part of several|unknown way"
    return {f"{what} {how}": Sample(content, words) for how, content in table.items()}


SAMPLES: Samples = {
    **{
        what: Sample(content, says, DAMAGED, control)
        for what, (content, says, control) in _MALICIOUS.items()
    },
    "a compressed pickle": Sample(
        zip_bytes([deflated("archive/data.pkl", EVIL), VERSION]), "compressed", UNKNOWN, "archive"
    ),
    **_damaged("a directory", _END_FIELDS),
    **_damaged("an entry", _DIRECTORY),
    **_damaged("a header", _HEADERS),
    **{
        f"a member {what}": Sample(content, "compressed or encrypted", UNKNOWN)
        for what, content in _UNREADABLE.items()
    },
    **_CONTENT,
    **_cuts(),
}
