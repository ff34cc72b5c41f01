"""Files that cost their reader far more memory, time or disk space than their size suggests.

Some samples exceed a limit of the loader. The others stay just below the limits, so that the loader
reads them in full, at the highest cost that it allows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import chain, islice

from sd_loader.formats.pickle import MAX_BYTES, MAX_INSTRUCTIONS
from sd_loader.formats.safetensors import LONGEST_HEADER, MAX_HEADER
from tests.support.formats.legacyfiles import Legacy, number, stored, tensor
from tests.support.formats.torchfiles import archive
from tests.support.formats.zipfiles import Part, zip_bytes
from tests.support.hostile.opcodes import GOOD, NUMBERS
from tests.support.hostile.pickles import EMPTY_DICT, arguments, call, name, pickled, text
from tests.support.hostile.safetensorsfiles import file_of
from tests.support.hostile.samples import UNKNOWN, UNSAFE, Sample, Samples

SMILE = "\U0001f600".encode()
MOST = MAX_INSTRUCTIONS - 1000
ROOM = MAX_BYTES - 1000
MEGABYTE = 1 << 20
METADATA = b'{"__metadata__":{'


def repeated(instructions: bytes, each: int) -> bytes:
    """Return a pickle that repeats these instructions up to the limit and keeps all results.

    `each` is the number of instructions in one repetition. The results are kept in tuples in a
    tuple.
    """
    times = min(MOST // each, ROOM // len(instructions))
    marks = times // 150_000 + 1  # the size of the stack is limited too
    return pickled(
        b"(" + (b"(" + instructions * (times // marks) + b"t") * marks + b"t", protocol=4
    )


def longest_text(*, bytes_: int = ROOM) -> bytes:
    """Push a text in which one emoji makes Python store four bytes per character."""
    value = SMILE + b"x" * (bytes_ - 100)
    return b"X" + struct.pack("<I", len(value)) + value


def storage(key: str, count: int) -> bytes:
    """Push a reference to a storage of a torch archive."""
    kind = name("torch", "FloatStorage")
    parts = text("storage"), kind, text(key), text("cpu"), number(count)
    return arguments(*parts) + b"Q"


def entries(count: int, value: bytes) -> bytes:
    """Push a dictionary of `count` names that all have this value."""
    names = (b"\x8c\x08%08x" % index for index in range(count))
    return b"}(" + b"".join(chain.from_iterable((key, value) for key in names)) + b"u"


def views(count: int, length: int) -> bytes:
    """Return a pickle of `count` tensors that all cover one storage of `length` numbers."""
    whole = tensor(storage("0", length), [length])
    return pickled(whole, b"q\xff0", entries(count, b"h\xff"), protocol=4)


def filled(unit: bytes, before: bytes = b"", after: bytes = b"", room: int = MAX_HEADER) -> bytes:
    """Return a header that repeats this unit as often as fits."""
    return before + unit * ((room - len(before) - len(after)) // len(unit)) + after


def keys(limit: int) -> bytes:
    """Return a JSON object with as many names as fit into `limit` bytes."""
    pairs: Iterable[bytes] = (b'"%x":0' % index for index in range(limit))
    return b"{" + b",".join(islice(pairs, limit // 11)) + b"}"


def in_archive(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return a function that makes the pickle and puts it into a torch archive."""
    return lambda: archive(make(), NUMBERS)


NOTHING = "no dictionary of tensors|holds no tensors"
DEEP = 900
SIZE = name("torch", "Size")
_PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a text of four bytes a letter": (lambda: pickled(longest_text()), NOTHING),
    "a text longer than is read": (
        lambda: pickled(longest_text(bytes_=MAX_BYTES + 200)), "bytes long; at most",
    ),
    "an unknown protocol": (lambda: pickled(b"}", protocol=6), "protocol 6 is unknown"),
    "a number of a million digits": (
        lambda: pickled(b"\x8b" + struct.pack("<i", MEGABYTE) + b"\x7f" * MEGABYTE), NOTHING,
    ),
    "a number of all its bytes": (
        lambda: pickled(b"\x8b" + struct.pack("<i", ROOM) + b"\x7f" * ROOM), NOTHING,
    ),
    "bytes": (lambda: pickled(b"B" + struct.pack("<I", ROOM) + bytes(ROOM)), NOTHING),
    "more bytes than there are": (
        lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "damaged pickle",
    ),
    "a text of 2**63 bytes": (
        lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b".", "damaged pickle",
    ),
    "a byte array of 2**40 bytes": (
        lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "damaged pickle",
    ),
    "dictionaries": (lambda: repeated(b"}", 1), NOTHING),
    "lists": (lambda: repeated(b"]", 1), NOTHING),
    "lists of one": (lambda: repeated(b"]Na", 3), NOTHING),
    "dictionaries of one": (lambda: repeated(b"}\x8c\x01aNs", 4), NOTHING),
    "tuples of one": (lambda: repeated(b"N\x85", 2), NOTHING),
    "numbers": (lambda: repeated(b"J\xff\xff\xff\x7f", 1), NOTHING),
    "fractions": (lambda: repeated(b"G" + bytes(8), 1), NOTHING),
    "byte arrays": (lambda: repeated(b"\x96" + struct.pack("<Q", 1) + b"x", 1), NOTHING),
    "texts": (lambda: repeated(b"\x8c\x03abc", 1), NOTHING),
    "texts of one smile": (lambda: repeated(b"\x8c\x04" + SMILE, 1), NOTHING),
    "names": (lambda: repeated(name("builtins", "int"), 1), NOTHING),
    "names from the stack": (lambda: repeated(b"\x8c\x05torch\x8c\x04Size\x93", 3), NOTHING),
    "calls": (lambda: repeated(call(SIZE, b"N"), 5), NOTHING),
    "parameters of modules": (
        lambda: repeated(call(name("torch.nn.modules.container", "ParameterDict")), 4), NOTHING,
    ),
    "storages": (lambda: repeated(storage("0", 3), 8), NOTHING),
    "tensors": (lambda: repeated(tensor(storage("0", 3), [3]), 24), NOTHING),
    "memos": (
        lambda: pickled(
            b"}", *(b"r" + struct.pack("<I", 1000 + index) for index in range(MOST))
        ), NOTHING,
    ),
    "memos of new dictionaries": (
        lambda: pickled(b"N", *[b"0}\x94"] * (MOST // 3), protocol=4), NOTHING,
    ),
    "one memo of number 2**32 - 1": (
        lambda: pickled(b"}r\xff\xff\xff\xff"), NOTHING,
    ),
    "instructions": (lambda: b"N0" * MAX_INSTRUCTIONS, "instructions"),
    "a stack of a million": (lambda: b"N" * 300_000, "objects at a time"),
    "marks": (lambda: b"(" * 20_000, "nested deeper"),
    "tuples, nested": (lambda: pickled(b")", b"\x85" * MOST), NOTHING),
    "lists, nested": (
        lambda: pickled(b"]" * 190_000, b"a" * 189_999), NOTHING,
    ),
    "tuples that double": (lambda: pickled(b")", b"2\x86" * (MOST // 2)), NOTHING),
    "a list that holds itself": (lambda: pickled(b"]q\0h\0a"), NOTHING),
    "a dictionary that is its own state": (
        lambda: pickled(EMPTY_DICT, b"q\0", text("state_dict"), b"h\0s"), NOTHING,
    ),
    "a list filled from itself": (
        lambda: pickled(b"]q\0", b"(" + b"h\0" * 1000 + b"e"), NOTHING,
    ),
    "names of values": (
        lambda: pickled(entries(MOST // 3, b"\x8c\x01a"), protocol=4), "objects at a time",
    ),
    "values beside the weights": (
        lambda: pickled(
            b"}", *(entries(90_000, text("a" * 9))[1:] for _ in range(5)), protocol=4
        ), NOTHING,
    ),
    "tensors, more than are read": (
        lambda: views(99_999, 3)[:-1] + text("a") + b"h\xffs" + text("b") + b"h\xffs.",
        "tensors; at most",
    ),
}  # fmt: skip
_HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lists": (lambda: filled(b"[],", b'{"a":[', b"0]}"), "not exactly"),
    "lists, nested": (
        lambda: filled(b"[" * DEEP + b"]" * DEEP + b",", b'{"a":[', b"0]}"), "not exactly",
    ),
    "lists, nested, of smiles": (
        lambda: filled(
            b"[" * DEEP + b"]" * DEEP + b",", b'{"' + SMILE + b'":[', b"0]}"
        ), "not exactly",
    ),
    "dictionaries, nested": (
        lambda: filled(b'{"":' * DEEP + b"0" + b"}" * DEEP + b",", b'{"a":[', b"0]}"),
        "not exactly",
    ),
    "names": (lambda: keys(MAX_HEADER), "at most"),
    "metadata": (
        lambda: b'{"__metadata__":' + keys(MAX_HEADER - 20) + b"}", "allows strings only",
    ),
    "one text of metadata": (
        lambda: filled(b"x", METADATA + b'"a":"', b'"}}', LONGEST_HEADER), "without tensors",
    ),
    "escapes in metadata": (
        lambda: filled(rb"\u1234", METADATA + b'"a":"', b'"}}', LONGEST_HEADER), "without tensors",
    ),
    "quotes in metadata": (
        lambda: filled(rb"\"", METADATA + b'"a":"', b'"}}', LONGEST_HEADER), "without tensors",
    ),
    "metadata without end": (
        lambda: filled(b"x", METADATA + b'"a":"', b"", LONGEST_HEADER), "cut off",
    ),
    "metadata of spaces": (
        lambda: filled(b" ", METADATA, b"}}", LONGEST_HEADER), "not a JSON object",
    ),
    "texts of metadata, each just kept": (
        lambda: METADATA
        + b",".join(b'"%d":"%b"' % (index, b"x" * (3 << 20)) for index in range(31)) + b"}}",
        "without tensors",
    ),
    "entries of metadata": (
        lambda: METADATA + b",".join(b'"%x":"%0180d"' % (i, i) for i in range(500_000)) + b"}}",
        "at most",
    ),
    "numbers": (lambda: filled(b"1.5,", b'{"a":[', b"0]}"), "not exactly"),
    "texts": (lambda: filled(b'"' + SMILE + b'",', b'{"a":[', b"0]}"), "not exactly"),
    "escapes": (lambda: filled(b"\\u1234", b'{"a":"', b'"}'), "not exactly"),
    "dimensions": (
        lambda: filled(
            b"1,", b'{"a":{"dtype":"U8","data_offsets":[0,1],"shape":[', b"1]}}"
        ), "dimensions",
    ),
    "spaces": (lambda: filled(b" ", b"{", b"}"), "without tensors"),
    "more than is read": (lambda: filled(b" ", b"{", b"}", MAX_HEADER + 2), "at most"),
}  # fmt: skip


def _empty_tensors(count: int) -> bytes:
    entry = b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return file_of(b"{" + b",".join(entry % index for index in range(count)) + b"}", b"")


def _members(count: int, *, said: int | None = None) -> bytes:
    parts = [Part(f"a/{index:x}") for index in range(count)]
    whole = zip_bytes([Part("a/data.pkl", GOOD), *parts])
    if said is None:
        return whole
    return whole[:-14] + struct.pack("<2H", said, said) + whole[-10:]


MANY = 30_000
SAMPLES: Samples = {
    "tensors of one storage": Sample(
        lambda: archive(views(50_000, MANY), {"0": bytes(4 * MANY)}), "far more than the file's",
        UNSAFE,
    ),
    **{
        f"a pickle of {what}": Sample(
            in_archive(make), says,
            UNSAFE if says == "far more than the file" else Sample.reason,
        )
        for what, (make, says) in _PICKLES.items()
    },
    **{
        f"a header of {what}": Sample(lambda make=make: file_of(make(), b""), says)
        for what, (make, says) in _HEADERS.items()
    },
    "a header of 70,000 empty tensors": Sample(
        lambda: _empty_tensors(70_000), "not a Stable Diffusion checkpoint", UNKNOWN
    ),
    "an archive of 20,000 members": Sample(lambda: _members(20_000), "missing"),
    "an archive that counts 65,534 members": Sample(lambda: _members(9, said=65_534), "cut off"),
    "a legacy file of texts": Sample(
        lambda: bytes(
            Legacy(content=pickled(b"(", *[longest_text(bytes_=ROOM // 4)] * 4, b"t"))
        ), NOTHING,
    ),
    "a legacy file of one long text": Sample(
        lambda: bytes(Legacy(content=pickled(longest_text()))), NOTHING
    ),
    "a legacy file of one text of 4 GB": Sample(
        bytes(Legacy(content=b"\x80\x02X\xff\xff\xff\xff.")), "a text of|damaged",
    ),
    "a legacy file of one line": Sample(
        lambda: bytes(Legacy(content=b"\x80\x02c" + b"x" * (2 * MAX_BYTES))), "cut off|damaged",
    ),
    "a legacy file of five pickles of dictionaries": Sample(
        lambda: bytes(Legacy(machine=[{} for _ in range(200_000)], content=repeated(b"}", 1))),
        "what machine",
    ),
    "a legacy file of tensors of one storage": Sample(
        lambda: bytes(
            Legacy(
                content=views(50_000, MANY).replace(b"tQ", b"NtQ", 1),
                keys=("0",), storages=(stored(MANY, bytes(4 * MANY)),),
            )
        ), "far more than the file", UNSAFE,
    ),
}  # fmt: skip
