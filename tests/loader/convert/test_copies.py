"""How bytes reach the disk: converted from memory, and whole files by the kernel's copy."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from sd_api.reasons import Reason
from sd_loader.bulk import COPY_BYTES, PIECE_BYTES
from sd_loader.convert.write.files import CopiedFile, FolderPlan, Item, WeightsFile, weights_file
from sd_loader.convert.write.folder import write_or_link
from sd_loader.convert.write.writer import write_folder
from sd_loader.digests import blake3_of
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.handover import Arrived, FileDigest
from sd_loader.tensors import Dtype, Joined, Tensor, TensorFile, rows

CONTENT = os.urandom(5 * 2**20 + 77)
NAME = "model.safetensors"
real_copy = os.copy_file_range


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    """An open file with CONTENT."""
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for the output."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def unchanged(fd: int) -> WeightsFile:
    """Return the plan of a weights file with all bytes of the source except the first."""
    return weights_file(NAME, [Item("x", Tensor(fd, Dtype.U8, (len(CONTENT) - 1,), 1), Dtype.U8)])


def written(out: Path, file: WeightsFile, *sources: TensorFile) -> FileDigest:
    """Write the file and return its digest."""
    return write_folder(out, [file], lambda _: None, sources)[NAME]


def of(path: Path) -> FileDigest:
    """The digest of a file on the disk."""
    content = path.read_bytes()
    return FileDigest(blake3_of(content), len(content))


class Calls:
    """Wraps a function of `os`, and records the size of each call."""

    def __init__(self, name: str, size: Callable[..., int]) -> None:
        self._original = getattr(os, name)
        self._size = size
        self.sizes: list[int] = []

    def __call__(self, *args: int) -> int:
        """Record the size, and call the function."""
        self.sizes.append(self._size(*args))
        return int(self._original(*args))


def test_converted_bytes_are_read_and_written_in_small_pieces(
    source: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call reads or writes more than PIECE_BYTES."""
    reads = Calls("preadv", lambda _fd, targets, _position: len(targets[0]))
    writes = Calls("pwrite", lambda _fd, content, _position: len(content))
    monkeypatch.setattr(os, "preadv", reads)
    monkeypatch.setattr(os, "pwrite", writes)
    file = unchanged(source)
    digest = written(out, file)
    assert max(reads.sizes) == max(writes.sizes) == PIECE_BYTES
    assert sum(writes.sizes) == file.size
    assert (out / NAME).read_bytes() == file.header + CONTENT[1:]
    assert digest == of(out / NAME)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume has no hard links, so files that are published as they are must be copied."""
    refused = Mock(side_effect=OSError(errno.EPERM, os.strerror(errno.EPERM)))
    monkeypatch.setattr(os, "link", refused)


def copied(out: Path, source: Path) -> FileDigest:
    """Publish a file as it is. Return its digest."""
    plan = FolderPlan(files=(), copied=(CopiedFile(NAME, source, len(CONTENT)),))
    return write_or_link(plan, {}, {}, out, lambda _: None)[NAME]


@pytest.mark.usefixtures("source", "no_links")
def test_kernel_copies_whole_files(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte is written from memory. A load can be stopped between the calls, which are short."""
    writes = Calls("pwrite", lambda _fd, content, _position: len(content))
    copies = Calls("copy_file_range", lambda _from, _to, count, _offset, _position: count)
    monkeypatch.setattr(os, "pwrite", writes)
    monkeypatch.setattr(os, "copy_file_range", copies)
    digest = copied(out, tmp_path / "source")
    assert writes.sizes == []
    assert sum(copies.sizes) == len(CONTENT)
    assert max(copies.sizes) <= COPY_BYTES
    assert (out / NAME).read_bytes() == CONTENT
    assert digest == of(out / NAME)


def refusing(code: int, after: int = 0) -> Callable[..., int]:
    """Return a copy_file_range that fails with `code` after `after` successful calls."""
    calls = 0

    def copy(*args: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(code, os.strerror(code))
        return real_copy(*args)

    return copy


def ending(*_: int) -> int:
    """A copy_file_range that copies nothing."""
    return 0


def short(source: int, target: int, count: int, offset: int, position: int) -> int:
    """A copy_file_range that copies a part."""
    return real_copy(source, target, min(count, 300_001), offset, position)


FAULTS = {
    "copies nothing": ending,
    "copies a part": short,
    **{
        f"{errno.errorcode[code]} after {after}": refusing(code, after)
        for code in (errno.EPERM, errno.EIO, errno.EXDEV, errno.EACCES, errno.EINVAL, errno.ENOSYS)
        for after in (0, 2)
    },
}


@pytest.mark.usefixtures("source", "no_links")
@pytest.mark.parametrize("fault", FAULTS)
def test_bytes_that_the_kernel_does_not_copy_are_read_and_written(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The file and its digest are the same as without the fault."""
    monkeypatch.setattr(os, "copy_file_range", FAULTS[fault])
    digest = copied(out, tmp_path / "source")
    assert (out / NAME).read_bytes() == CONTENT
    assert digest == of(out / NAME)


@pytest.mark.usefixtures("source", "no_links")
def test_file_that_the_kernel_cannot_copy_is_not_tried_again_and_again(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one call that failed, the whole file is read and written."""
    failing = Mock(side_effect=OSError(errno.EXDEV, os.strerror(errno.EXDEV)))
    monkeypatch.setattr(os, "copy_file_range", failing)
    copied(out, tmp_path / "source")
    failing.assert_called_once()


@pytest.mark.usefixtures("source", "no_links")
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_volume_ends_the_copy(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, code: int, after: int
) -> None:
    """The message names the file. The loader does not try to read and write, which would fail."""
    monkeypatch.setattr(os, "copy_file_range", refusing(code, after))
    with pytest.raises(LoaderError, match=f"the volume is full: {NAME}") as caught:
        copied(out, tmp_path / "source")
    assert caught.value.reason is Reason.INSUFFICIENT_STORAGE


@pytest.mark.usefixtures("source")
def test_files_are_copied_to_a_file_system_in_memory(tmp_path: Path) -> None:
    """The file is complete on tmpfs, to which the kernel does not copy from a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        digest = copied(Path(folder), tmp_path / "source")
        assert (Path(folder) / NAME).read_bytes() == CONTENT
        assert digest == of(Path(folder) / NAME)


def then(name: str, change: Callable[[int], object]) -> Callable[..., int]:
    """Return a function of `os` that changes the source after its first call."""
    original = getattr(os, name)
    is_changed = False

    def call(source: int, *args: object) -> int:
        nonlocal is_changed
        count = int(original(source, *args))
        if not is_changed:
            is_changed = True
            change(source)
        return count

    return call


def test_digest_fits_the_output_if_the_source_changes_during_the_conversion(
    source: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is that of the output, which has bytes from before and after the change."""
    other = os.urandom(len(CONTENT))
    monkeypatch.setattr(os, "preadv", then("preadv", lambda fd: os.pwrite(fd, other, 0)))
    file = unchanged(source)
    digest = written(out, file)
    content = (out / NAME).read_bytes()
    assert content not in (file.header + CONTENT[1:], file.header + other[1:])
    assert digest == of(out / NAME)


@pytest.mark.usefixtures("source", "no_links")
def test_digest_fits_the_output_if_the_source_changes_during_the_copy(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is that of the copy, which has bytes from before and after the change."""
    other = os.urandom(len(CONTENT))
    path = tmp_path / "source"
    change = then("copy_file_range", lambda _fd: write_over(path, other))
    monkeypatch.setattr(os, "copy_file_range", change)
    digest = copied(out, path)
    assert (out / NAME).read_bytes() not in (CONTENT, other)
    assert digest == of(out / NAME)


def write_over(path: Path, content: bytes) -> None:
    """Write over the beginning of a file."""
    with path.open("r+b") as file:
        file.write(content)


def test_source_that_is_cut_during_the_conversion_is_an_error(
    source: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the source is cut off during the conversion, the error names the byte where it ends."""
    cut = then("preadv", lambda fd: os.ftruncate(fd, 2**20 + 9))
    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(LoaderError, match=f"ends at byte {2**20 + 9}") as caught:
        written(out, unchanged(source))
    assert caught.value.reason is Reason.CONVERSION_FAILED


@pytest.mark.usefixtures("source", "no_links")
def test_source_that_is_cut_during_the_copy_is_an_error(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a file is not published as the file."""
    path = tmp_path / "source"
    cut = then("copy_file_range", lambda _fd: os.truncate(path, 2**20 + 9))
    monkeypatch.setattr(os, "copy_file_range", cut)
    with pytest.raises(LoaderError, match=f"has {2**20 + 9} bytes instead of") as caught:
        copied(out, path)
    assert caught.value.reason is Reason.CONVERSION_FAILED


@pytest.mark.parametrize("damage", ["before", "after"])
def test_checksums_are_those_of_the_written_bytes(
    tmp_path: Path, source: int, out: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The loader verifies the bytes that it wrote, not the source as it is later.

    Damaged bytes are detected even if the source is correct again after the read. Damage to the
    source after the read does not matter.
    """
    wrong = bytes([CONTENT[9] ^ 1])
    if damage == "before":
        os.pwrite(source, wrong, 9)
    byte = CONTENT[9:10] if damage == "before" else wrong
    monkeypatch.setattr(os, "preadv", then("preadv", lambda fd: os.pwrite(fd, byte, 9)))
    item = unchanged(source).items[0]
    file = TensorFile(
        path=tmp_path / "source",
        fd=source,
        format="checkpoint",
        tensors={"x": item.source},
        checksums={(1, len(CONTENT) - 1): zlib.crc32(CONTENT[1:])},
    )
    if damage == "after":
        assert written(out, unchanged(source), file) == of(out / NAME)
    else:
        with pytest.raises(LoaderError, match="the file was damaged") as caught:
            written(out, unchanged(source), file)
        assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_rows_that_follow_one_another_become_one_tensor(source: int, tmp_path: Path) -> None:
    """The two halves of a tensor are swapped, and the digest is that of the written file."""
    whole = Tensor(source, Dtype.U8, (2, len(CONTENT) // 2), 0)
    first, second = rows(whole, 0, 1), rows(whole, 1, 2)
    planned = weights_file(NAME, [Item("swapped", Joined((second, first)), Dtype.U8)])
    (tmp_path / "out").mkdir()
    digests = write_folder(tmp_path / "out", [planned], lambda _: None)
    written = (tmp_path / "out" / NAME).read_bytes()
    half = len(CONTENT) // 2
    assert written == planned.header + CONTENT[half : 2 * half] + CONTENT[:half]
    assert digests[NAME] == FileDigest(blake3_of(written), len(written))


def test_file_with_the_source_in_another_order_is_not_linked(tmp_path: Path) -> None:
    """A file is linked as it is, but written anew if the plan takes its rows in another order.

    Header and size are equal in both cases.
    """
    whole = Tensor(-1, Dtype.U8, (2, 4), 0)
    plain = weights_file(NAME, [Item("one", whole, Dtype.U8)])
    path = tmp_path / NAME
    path.write_bytes(plain.header + bytes(range(8)))
    status = path.stat()
    arrived = Arrived(blake3_of(path.read_bytes()), status.st_size, status.st_mtime_ns)
    with open_tensor_file(path) as file:
        tensor = file.tensors["one"]
        swapped = Joined((rows(tensor, 1, 2), rows(tensor, 0, 1)))
        for source, linked in ((tensor, True), (swapped, False)):
            plan = FolderPlan(files=(weights_file(NAME, [Item("one", source, Dtype.U8)]),))
            out = tmp_path / str(linked)
            out.mkdir()
            write_or_link(plan, {file.fd: file}, {path: arrived}, out, lambda _: None)
            assert path.samefile(out / NAME) is linked
    assert (tmp_path / "False" / NAME).read_bytes()[-8:] == bytes([4, 5, 6, 7, 0, 1, 2, 3])
