"""Hostile files behind links are refused before their weights are downloaded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from devkit.fakefiles import FileServer
from sd_api.reasons import Reason
from sd_loader.streaming import LEAST_BYTES
from tests.support.formats.legacyfiles import content, storage, tensor
from tests.support.formats.torchfiles import Call
from tests.support.formats.zipfiles import Part, extra_field, zip_bytes
from tests.support.hostile.pickles import TOUCH
from tests.support.hostile.samples import DAMAGED, UNSAFE
from tests.support.hostile.zips import local_only
from tests.support.loader.loaderbatch import Line, Ran, run_lines
from tests.support.tally import Tally

SIZE = LEAST_BYTES + (1 << 20)
LARGE = torch.zeros(SIZE // 4)
MEGABYTE = 1 << 20
MEMORY = 300 * MEGABYTE
Make = Callable[[], bytes]


def archive(**more: object) -> bytes:
    """Return a torch archive that is large enough to be converted during its download."""
    buffer = io.BytesIO()
    torch.save({"weight": LARGE, **more}, buffer)
    return buffer.getvalue()


def with_end(at: int, layout: str, *values: object) -> Make:
    """Return a function that makes an archive with these values near its end."""

    def make() -> bytes:
        content = bytearray(archive())
        struct.pack_into(layout, content, len(content) + at, *values)
        return bytes(content)

    return make


def renamed(old: bytes, new: bytes) -> Make:
    """Return a function that makes an archive whose directory gives one member another name."""

    def make() -> bytes:
        content = archive()
        directory = content.index(b"PK\1\2", SIZE)
        return content[:directory] + content[directory:].replace(old, new)

    return make


def safetensors(header: object, data: int = SIZE, length: int | None = None) -> Make:
    """Return a function that makes a safetensors file with this header and zeros."""

    def make() -> bytes:
        text = json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)

    return make


WHOLE = {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}
FILES = {
    "code in a zip": (lambda: archive(x=Call(os.system, TOUCH)), UNSAFE, "posix.system"),
    "code before torch 1.6": (
        lambda: b"\x80\x02cposix\nsystem\nX\x0c\0\0\0touch canary\x85R." + bytes(SIZE),
        UNSAFE, "a bare Python pickle",
    ),
    "a directory behind the file": (
        with_end(-6, "<L", 0xFFFFFF00), DAMAGED, "contradict|not where",
    ),
    "more entries than there are": (with_end(-14, "<2H", 99, 99), DAMAGED, "contradict|cut off"),
    "a wide end elsewhere": (with_end(-34, "<Q", 2**64 - 1), DAMAGED, "not where"),
    "a comment": (lambda: archive()[:-2] + b"\4\0evil", DAMAGED, "added to"),
    "bytes at the end": (lambda: archive() + b"more", DAMAGED, "added to"),
    "the end cut off": (lambda: archive()[:-9], DAMAGED, "truncated"),
    "a name that ends early": (renamed(b"byteorder", b"version\0\0"), DAMAGED, "not a plain path"),
    "a name in capitals": (renamed(b"byteorder", b"DATA.PKL."), DAMAGED, "another name|hidden"),
    "a name that climbs out": (renamed(b"byteorder", b"../../xyz"), DAMAGED, "not a plain path"),
    "a second root": (
        renamed(b"archive/byteorder", b"brchive/byteorder"), Reason.NOT_A_MODEL, "torch's",
    ),
    "a hole in a header": (
        safetensors({"a": WHOLE | {"data_offsets": [1, SIZE + 1]}}, SIZE + 1), DAMAGED, "a hole",
    ),
    "an overlap": (safetensors({"a": WHOLE, "b": WHOLE}), DAMAGED, "overlap"),
    "a shape of 2**64 and more": (
        safetensors({"a": WHOLE | {"shape": [1 << 40, 1 << 40]}}), DAMAGED, "dtype and shape need",
    ),
    "bytes behind the data": (safetensors({"a": WHOLE}, SIZE + 1), DAMAGED, "follow the last"),
    "data cut off": (safetensors({"a": WHOLE}, SIZE - 1), DAMAGED, "truncated"),
    "a header of 2**39 bytes": (
        safetensors({"a": WHOLE}, length=1 << 39), DAMAGED, "a safetensors header of",
    ),
    "a header longer than the file": (
        safetensors({"a": WHOLE}, length=SIZE * 2), DAMAGED, "truncated: it ends after",
    ),
    "a header just longer than is read": (
        safetensors({"a": WHOLE}, length=5 << 20), DAMAGED, "a safetensors header of",
    ),
}  # fmt: skip


@contextlib.contextmanager
def loaded(root: Path, files: Mapping[str, bytes]) -> Iterator[list[tuple[Path, FileServer, Ran]]]:
    """Load each file from its own server; yield the folder, the server and the run of each."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(FileServer()) for _ in files]
        lines = []
        for number, (server, content) in enumerate(zip(servers, files.values(), strict=True)):
            (root / str(number)).mkdir()
            url = server.serve_file("/model", content)
            arguments = ["load", "--url", url, "--model-id", "m", "--store", "store"]
            lines.append(Line(root / str(number), arguments))
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "SD_LOADER_ALLOWED_HOSTS": ",".join(server.host for server in servers),
        }
        folders = [line.folder for line in lines]
        yield list(zip(folders, servers, run_lines(lines, env), strict=True))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(list(FILES)[:3], id="some"),
        *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in list(FILES)[3:]),
    ],
)
def test_a_hostile_file_behind_a_link_is_refused(
    tmp_path: Path, tally: Tally, names: list[str]
) -> None:
    """No code runs, the volume stays empty, and less than 8 MB of the file are downloaded."""
    with loaded(tmp_path, {name: FILES[name][0]() for name in names}) as results:
        for name, (folder, server, ran) in zip(names, results, strict=True):
            _, reason, says = FILES[name]
            said = re.search(rf"^error: {reason.value}: (.*)$", ran.output, re.MULTILINE)
            assert said, f"{name}: {ran.output}"
            assert re.search(says, said[1]), f"{name}: {ran.output}"
            assert ran.code == reason.exit_code, name
            assert list((folder / "store").iterdir()) == [], name
            assert not (folder / "canary").exists(), name
            assert server.bytes_served < 8 * MEGABYTE, name
            assert ran.memory < MEMORY, name
            tally("hostile files refused behind links")


@pytest.mark.slow
def test_a_large_member_that_is_not_a_storage_takes_no_memory(tmp_path: Path) -> None:
    """The loader refuses the archive after writing the member to the volume, not to memory."""
    large = Part("archive/large", bytes(320 * MEGABYTE))
    pickled = content({"weight": tensor(storage("0", 4).replace(b"NtQ", b"tQ"), [4])})
    first, name = Part("archive/data.pkl", pickled), "archive/data/0"
    padding = -(len(local_only(first)) + 30 + len(name)) % 64  # as torch aligns its storages
    weights = Part(name, bytes(16), local_extra=extra_field(0x4246, bytes(padding - 4)))
    with loaded(tmp_path, {"large": zip_bytes([first, weights, large])}) as [(_, _, ran)]:
        pass
    assert "error: UnsupportedFormat: " in ran.output
    assert ran.memory < MEMORY
