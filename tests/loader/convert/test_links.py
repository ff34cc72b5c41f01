"""Downloaded files that are published unchanged are linked, and keep the download's digests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_loader.convert.write.files import FolderPlan, Item, WeightsFile, weights_file
from sd_loader.convert.write.folder import write_or_link
from sd_loader.digests import blake3_of
from sd_loader.handover import Arrived, FileDigest
from sd_loader.store.receipt import find_published
from sd_loader.store.volume import Volume
from sd_loader.tensors import Dtype, Tensor, TensorFile
from tests.support.loader.arrivals import arrived_in, bytes_read
from tests.support.store.madeup import Parts, converted, fetched
from tests.support.store.volumes import FILES, HASH, OWNER

CONTENT = os.urandom(3 * 2**20)
NAME = "unet/model.safetensors"


class Downloaded:
    """A downloaded file with one tensor, and the plan to publish it as it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "source" / "model.safetensors"
        self.out = folder / "out"
        self.out.mkdir()
        self.path.parent.mkdir()
        header = self._planned(-1, 0).header
        self.path.write_bytes(header + CONTENT)
        # Any later change has another time, even within the same tick of the clock.
        os.utime(self.path, (0, 0))
        self.fd = os.open(self.path, os.O_RDONLY)
        self.file = self._planned(self.fd, len(header))
        self.arrived = {
            self.path.parent / name: file for name, file in arrived_in(self.path.parent).items()
        }

    @staticmethod
    def _planned(fd: int, start: int) -> WeightsFile:
        tensor = Tensor(fd, Dtype.U8, (len(CONTENT),), start)
        return weights_file(NAME, [Item("x", tensor, Dtype.U8)])

    def publish(self) -> FileDigest:
        """Write or link the file, and return its digest."""
        source = TensorFile(self.path, self.fd, "safetensors", {})
        digests = write_or_link(
            FolderPlan((self.file,)), {self.fd: source}, self.arrived, self.out, lambda _: None
        )
        return digests[NAME]

    @property
    def is_linked(self) -> bool:
        """Whether the published file is the downloaded one."""
        return (self.out / NAME).samefile(self.path)


@pytest.fixture
def downloaded(tmp_path: Path) -> Iterator[Downloaded]:
    """A downloaded file with the digest that the download took."""
    made = Downloaded(tmp_path)
    yield made
    os.close(made.fd)


def of(path: Path) -> FileDigest:
    """Return the digest of a file on the disk."""
    content = path.read_bytes()
    return FileDigest(blake3_of(content), len(content))


def test_linked_file_is_not_read_for_its_digest(downloaded: Downloaded) -> None:
    """The published digest is that of the download; only the header of the file is read."""
    before = bytes_read()
    digest = downloaded.publish()
    assert bytes_read() - before < 0.05 * len(CONTENT)
    assert downloaded.is_linked
    assert digest == of(downloaded.path)


@pytest.mark.parametrize("change", ["content", "size"])
def test_file_that_changed_since_its_download_is_copied(
    downloaded: Downloaded, change: str
) -> None:
    """A file that changed since its download is copied, and the digest is that of the copy."""
    with downloaded.path.open("r+b") as file:
        file.seek(-1 if change == "content" else 0, os.SEEK_END)
        file.write(b"\0" if CONTENT[-1] else b"\1")
    digest = downloaded.publish()
    assert not downloaded.is_linked
    assert digest == of(downloaded.out / NAME)


def test_file_with_an_unknown_digest_is_copied(downloaded: Downloaded) -> None:
    """A file without a digest of the download may belong to the user, so it is not linked."""
    downloaded.arrived.clear()
    digest = downloaded.publish()
    assert not downloaded.is_linked
    assert digest == of(downloaded.out / NAME)


def test_receipt_keeps_the_sha256_of_files_that_pass_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt has the SHA-256 of files that are published as they were downloaded.

    Files that the conversion made have none.
    """
    parts = Parts.installed(monkeypatch)
    unchanged = FILES["unet/config.json"]
    sha256 = "5" * 64
    parts.arrived = {"file": Arrived(blake3_of(unchanged), len(unchanged), 0, sha256)}
    fetched(tmp_path)
    converted(tmp_path)
    with Volume.open(tmp_path) as volume:
        receipt = find_published(volume, OWNER.uid, HASH)
    assert receipt is not None
    assert {path: file.sha256 for path, file in receipt.files.items()} == {
        path: sha256 if content == unchanged else None for path, content in FILES.items()
    }
