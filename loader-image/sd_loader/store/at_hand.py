"""Finds files on the volume by their SHA-256, so that they are not downloaded again.

The receipts of published versions state the SHA-256 of files that were published as they were
downloaded, and the blobs (see `blobs`) are further hard links to these files. Receipts are not
trusted: a file is used only if its bytes have the SHA-256 that the source states.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from sd_api.names import STORE_DIR
from sd_api.wire import Receipt
from sd_loader.digests import both_digests_of_file
from sd_loader.errors import LoaderError
from sd_loader.handover import Arrived
from sd_loader.store.blobs import SHARED_FROM, folder_of
from sd_loader.store.folder import Folder
from sd_loader.store.receipt import read_receipt
from sd_loader.store.volume import Volume

log = logging.getLogger(__name__)


class FilesAtHand:
    """The files of one volume. It reads the receipts when it is first asked for a file."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def link(self, sha256: str, size: int, path: Path) -> Arrived | None:
        """Put the file with this SHA-256 and size at a path, as a hard link, and return its record.

        Return None if the volume has no such file, or if it cannot be linked.
        """
        if size < SHARED_FROM:
            return None
        for blake3 in self._blobs.get(sha256, ()):
            try:
                found = self._link(blake3, sha256, size, path)
            except (OSError, LoaderError) as error:
                # It was removed in the meantime, or the volume has no hard links.
                log.info("the shared file %s is not used: %s", blake3, error)
                continue
            if found is not None:
                return found
        return None

    def _link(self, blake3: str, sha256: str, size: int, path: Path) -> Arrived | None:
        blobs = self._volume.find(*folder_of(blake3))
        if blobs is None:
            return None
        with blobs, ExitStack() as undo:
            blob = blobs.status(blake3)
            if blob is None or not _is_usable(blob, size):
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            os.link(blake3, path, src_dir_fd=blobs.fd, follow_symlinks=False)
            undo.callback(path.unlink, missing_ok=True)
            # The content is compared after linking: until then, the blob may be replaced.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            linked = os.fstat(fd)
            if not _is_usable(linked, size):
                return None
            digests = both_digests_of_file(fd)
            if digests != (blake3, sha256):
                log.warning("the shared file %s was altered; it is not used", blake3)
                if digests[0] != blake3:
                    blobs.unlink(blake3)
                return None
            undo.pop_all()
            os.close(fd)
        return Arrived(blake3, size, linked.st_mtime_ns, sha256)

    @cached_property
    def _blobs(self) -> Mapping[str, set[str]]:
        """The names of the blobs, by the SHA-256 that receipts state for their content."""
        found = defaultdict(set)
        try:
            for receipt in _receipts(self._volume):
                for file in receipt.files.values():
                    if file.sha256 is not None:
                        found[file.sha256].add(file.blake3)
        except (OSError, LoaderError) as error:
            log.warning("files of other models are not used: %s", error)
        return found


def _is_usable(status: os.stat_result, size: int) -> bool:
    # A file of another user is not linked: its owner could change this model's file.
    is_own = status.st_uid == os.geteuid()
    return stat.S_ISREG(status.st_mode) and status.st_size == size and is_own


def _receipts(volume: Volume) -> Iterator[Receipt]:
    """Yield the receipts that can be read."""
    for uid in _names(volume.find(STORE_DIR)):
        for load_hash in _names(_folder(volume, uid)):
            version = _folder(volume, uid, load_hash)
            if version is None:
                continue
            with version:
                try:
                    yield read_receipt(version)
                except (OSError, ValueError):
                    continue  # It is not published completely, or is being removed.


def _folder(volume: Volume, *names: str) -> Folder | None:
    """Open a folder in the store. None for anything else, such as a file that someone put there."""
    try:
        return volume.find(STORE_DIR, *names)
    except LoaderError:
        return None


def _names(folder: Folder | None) -> list[str]:
    if folder is None:
        return []
    with folder:
        return folder.names()
