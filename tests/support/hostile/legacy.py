"""Hostile torch files from before 1.6: one of the five pickles has code or contradicts the file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from dataclasses import replace

from tests.support.formats.legacyfiles import MAGIC, Legacy, content, number, part, storage, tensor
from tests.support.formats.torchfiles import Call
from tests.support.hostile import pickles as hostile
from tests.support.hostile.opcodes import EVIL
from tests.support.hostile.samples import DAMAGED, UNKNOWN, UNSAFE, Sample, Samples

GOOD = Legacy()
RUN = Call(os.system, hostile.TOUCH)
_FIRST = GOOD.storages[:1]


def of(weight: bytes, **changed: object) -> bytes:
    """Return a file with the single tensor `weight`."""
    file = replace(GOOD, content=content({"weight": weight}), keys=("0",), storages=_FIRST)
    return bytes(replace(file, **changed))  # type: ignore[arg-type]


def tarred(**members: bytes) -> bytes:
    """Return a tar, the format of torch before 0.2."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


_MALICIOUS: Samples = {
    "code as the version": Sample(bytes(replace(GOOD, version=EVIL)), "posix.system", UNSAFE),
    "code in the writer's machine": Sample(
        bytes(replace(GOOD, machine={"little_endian": RUN})), "posix.system", UNSAFE
    ),
    "code as the content": Sample(bytes(replace(GOOD, content=EVIL)), "posix.system", UNSAFE),
    "code in the list of keys": Sample(bytes(replace(GOOD, keys=[RUN])), "posix.system", UNSAFE),
    "code in a storage's view": Sample(
        of(tensor(storage("0", 3, part=hostile.RUN), [3])), "posix.system", UNSAFE
    ),
    "code in a storage's type": Sample(
        of(
            tensor(
                hostile.arguments(
                    hostile.text("storage"), hostile.RUN, hostile.text("0"), hostile.text("cpu"),
                    number(3), b"N",
                ) + b"Q", [3],
            )
        ), "posix.system", UNSAFE,
    ),
    "code in a tensor's hooks": Sample(
        of(
            hostile.call(
                hostile.name("torch._utils", "_rebuild_tensor_v2"), storage("0", 3), number(0),
                hostile.arguments(number(3)), hostile.arguments(number(1)), b"\x89", hostile.RUN,
            )
        ), "posix.system", UNSAFE,
    ),
    "code where the magic number is": Sample(EVIL + bytes(GOOD), "a bare Python pickle", UNSAFE),
    "a magic number of another protocol": Sample(
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=4)
        + bytes(replace(GOOD, version=EVIL))[len(MAGIC):],
        "a bare Python pickle", UNSAFE,
    ),
    "a tar of pickles": Sample(
        tarred(storages=EVIL, tensors=b"", pickle=b""), "a tar archive"
    ),
}  # fmt: skip
_CHAINED: Samples = {
    "a sixth pickle": Sample(
        bytes(replace(GOOD, keys=("0", "1"), storages=(EVIL,), rest=b"")),
        "elements, not 3|truncated", DAMAGED, "bare",
    ),
    "a pickle at the end": Sample(
        bytes(replace(GOOD, rest=EVIL)), "bytes follow", DAMAGED, "carved"
    ),
}  # fmt: skip
_MALFORMED: Samples = {
    "no more than the magic number": Sample(MAGIC, "cut off"),
    "the magic number twice": Sample(MAGIC + bytes(GOOD), "unknown version", UNKNOWN),
    "a version of text": Sample(
        bytes(replace(GOOD, version=hostile.pickled(hostile.text("1001")))), "unknown", UNKNOWN
    ),
    "a version as a fraction": Sample(
        bytes(replace(GOOD, version=hostile.pickled(b"G" + struct.pack(">d", 1001.5)))),
        "unknown version", UNKNOWN,
    ),
    "a version nested a thousand deep": Sample(
        bytes(replace(GOOD, version=hostile.pickled(b"N" + b"2\x86" * 1000))), "unknown", UNKNOWN
    ),
    "a machine of both orders": Sample(
        bytes(replace(GOOD, machine={"little_endian": 1})), "little-endian", UNKNOWN
    ),
    "keys in a tuple": Sample(bytes(replace(GOOD, keys={"0", "1"})), "not a list of keys"),
    "a key that is nothing": Sample(bytes(replace(GOOD, keys=["0", None])), "not a list of keys"),
    "a storage without an end": Sample(bytes(GOOD)[:-4], "truncated"),
    "a count without its storage": Sample(
        bytes(replace(GOOD, storages=(*_FIRST, struct.pack("<Q", 2)))), "truncated"
    ),
    "a count of 2**64 - 1": Sample(
        bytes(replace(GOOD, storages=(struct.pack("<Q", 2**64 - 1), *GOOD.storages))),
        "elements, not 3",
    ),
    "a storage of 2**62 numbers": Sample(
        of(tensor(storage("0", 1 << 62), [3])), "unknown reference"
    ),
    "a storage of fewer than no numbers": Sample(
        of(tensor(storage("0", -3), [3])), "unknown reference"
    ),
    "a storage of quantized numbers": Sample(
        of(tensor(storage("0", 3, "QInt8Storage"), [3])), "QInt8Storage", UNKNOWN
    ),
    "a part of a part": Sample(
        of(tensor(storage("0", 3, part=part("0", 0, 2)), [2])), "part of itself"
    ),
    "a part of 2**61 numbers": Sample(
        of(tensor(storage("0", 3, part=part("7", 0, 1 << 61)), [3])), "part reaches beyond"
    ),
    "a shape of 2**80 numbers": Sample(
        of(tensor(storage("0", 3), [1 << 40, 1 << 40])), "beyond its storage"
    ),
    "a shape of nine dimensions": Sample(of(tensor(storage("0", 3), [1] * 9)), "not sizes"),
    "an offset beyond the file": Sample(
        of(tensor(storage("0", 3), [1], offset=1 << 61)), "beyond its storage"
    ),
    "a pickle without an end": Sample(
        bytes(replace(GOOD, content=GOOD.content[:-1], keys=())),
        "damaged pickle|exactly one object",
    ),
    "good weights after noise": Sample(b"\0" + bytes(GOOD), "of an unknown kind"),
}  # fmt: skip

SAMPLES: Samples = {
    **{
        what: replace(sample, control=sample.control or "torch")
        for what, sample in _MALICIOUS.items()
    },
    **_CHAINED,
    **_MALFORMED,
}
