"""Shares equal files of several models: the volume stores them once, with several hard links.

A blob is another hard link to a published file, named after its digest. It is created after a
version with this file was published, and removed when no version has the file any more. If a run is
killed in between, the next run removes the unused blobs.

Sharing is best effort: on a volume without hard links, models take more space but still load.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from sd_api.names import BLOBS_DIR, STORE_DIR
from sd_api.wire import PublishedFile
from sd_loader.errors import LoaderError
from sd_loader.store.folder import (
    NO_HARD_LINKS,
    Folder,
    file_digest,
    insist,
    temporary_name,
)
from sd_loader.store.receipt import find_published
from sd_loader.store.volume import Volume

log = logging.getLogger(__name__)

SHARED_FROM = 1 << 20
"""Smaller files are not shared: if a user edits a config in place, other models must not change,
and a thousand shared configs would save less space than one VAE."""

_ALGORITHM = "blake3"
_BLOB = re.compile(rf"{re.escape(BLOBS_DIR)}/{_ALGORITHM}/[0-9a-f]{{2}}/[0-9a-f]{{64}}")
_LINKS_OF_AN_ADOPTED_FILE = 3
"""Number of links of such a file: from this model, from the blob, and from the previous owner's
version, which is removed soon."""


def share(volume: Volume, out: Folder, files: Mapping[str, PublishedFile]) -> int:
    """Replace files in `out` by hard links to equal published files. Return the shared bytes."""
    shared = 0
    for path, file in files.items():
        if file.size < SHARED_FROM:
            continue
        *folders, name = path.split("/")
        with _at_best(path), out.open_folder(*folders) as parent:
            if _is_shared(volume, parent, name, file):
                shared += file.size
    return shared


def register(volume: Volume, uid: str, load_hash: str) -> None:
    """Create blobs of the files of a published version, so that later versions can share them."""
    receipt = find_published(volume, uid, load_hash)
    version = volume.find(STORE_DIR, uid, load_hash)
    if receipt is None or version is None:
        return
    with version:
        for path, file in receipt.files.items():
            if file.size >= SHARED_FROM:
                with _at_best(path):
                    _register(volume, version, path, file.blake3)


def drop_unused(volume: Volume) -> None:
    """Remove the blobs that no version uses."""
    try:
        for path in unused(volume):
            # A Pod that links to it at this moment keeps its file and creates the blob again.
            volume.unlink(path)
        remove_empty_folders(volume)
    except (OSError, LoaderError) as error:
        log.warning("the next load will try again to remove unused shared files: %s", error)


def unused(volume: Volume) -> list[str]:
    """Return the paths of the blobs that no version uses."""
    return [path for path, status in every(volume) if status.st_nlink == 1]


def every(volume: Volume) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and status of every blob. Other files in the folder are skipped."""
    return ((path, status) for path, status in _entries(volume) if _is_blob(path, status))


def foreign_entries(volume: Volume) -> list[str]:
    """Return the paths of files in the blobs folder that are not blobs."""
    return [path for path, status in _entries(volume) if not _is_blob(path, status)]


def _entries(volume: Volume) -> Iterator[tuple[str, os.stat_result]]:
    folder = volume.find(BLOBS_DIR)
    if folder is not None:
        with folder:
            for path, status in folder.entries():
                yield f"{BLOBS_DIR}/{path}", status


def _is_blob(path: str, status: os.stat_result) -> bool:
    return _BLOB.fullmatch(path) is not None and stat.S_ISREG(status.st_mode)


def remove_empty_folders(volume: Volume) -> None:
    """Remove the empty folders in the blobs folder, and the blobs folder itself if it is empty."""
    blobs = volume.find(BLOBS_DIR)
    if blobs is None:
        return
    with blobs:
        algorithm = volume.find(BLOBS_DIR, _ALGORITHM)
        if algorithm is not None:
            with algorithm:
                for prefix in algorithm.names():
                    algorithm.remove_if_empty(prefix)
            blobs.remove_if_empty(_ALGORITHM)
    volume.root.remove_if_empty(BLOBS_DIR)


@contextmanager
def _at_best(path: str) -> Iterator[None]:
    """Suppress an OSError or LoaderError of the `with` body: sharing must not fail the load.

    The error is logged, unless the volume does not support hard links.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            log.warning("%s is not shared: %s", path, error)
    except LoaderError as error:
        log.warning("%s is not shared: %s", path, error)


def _is_shared(volume: Volume, parent: Folder, name: str, file: PublishedFile) -> bool:
    """Replace the file by the blob's hard link if possible. Return whether the file is shared."""
    folder = volume.find(*folder_of(file.blake3))
    if folder is None:
        return False
    with folder:
        own, blob = parent.status(name), folder.status(file.blake3)
        if own is None or blob is None:
            return False
        if os.path.samestat(own, blob):
            return blob.st_nlink > _LINKS_OF_AN_ADOPTED_FILE
        if blob.st_nlink == 1:
            return False
        if blob.st_uid != own.st_uid:
            # The owner of the blob could change this model's file if it were linked.
            return False
        if _link_if_equal(folder, parent, name, file):
            return True
        log.warning("the shared file %s was altered; it is not used", file.blake3)
        folder.unlink(file.blake3)
        return False


def _link_if_equal(blobs: Folder, parent: Folder, name: str, file: PublishedFile) -> bool:
    """Replace a file by a hard link to its blob if their content is equal; return whether it was.

    The content is compared after the link is made, so that it cannot change in between.
    """
    temporary = temporary_name("shared")
    with ExitStack() as undo:
        undo.callback(parent.unlink, temporary)
        blobs.link(file.blake3, parent, temporary)
        status = parent.status(temporary)
        if status is None or not _is_equal(parent, temporary, status, file):
            return False
        parent.move(temporary, parent, name)
        undo.pop_all()
    return True


def _is_equal(folder: Folder, name: str, status: os.stat_result, file: PublishedFile) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size == file.size
        and file_digest(folder, name) == file.blake3
    )


def _register(volume: Volume, version: Folder, path: str, digest: str) -> None:
    *folders, name = path.split("/")
    with version.open_folder(*folders) as parent:
        if parent.file_size(name) is None:
            return  # It was removed in the meantime, or is not a regular file.

        def put() -> None:
            with volume.make(*folder_of(digest)) as blobs:
                blob = blobs.status(digest)
                if blob is not None and blob.st_nlink == 1:
                    blobs.unlink(digest)
                with suppress(FileExistsError):
                    parent.link(name, blobs, digest)

        # Another Pod may remove an empty parent folder in between.
        insist(put)


def folder_of(digest: str) -> tuple[str, ...]:
    """Return the path of a blob's folder, as the names of its parts on the volume."""
    return BLOBS_DIR, _ALGORITHM, digest[:2]
