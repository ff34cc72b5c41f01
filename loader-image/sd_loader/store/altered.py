"""Finds altered files: published files that differ from their receipt.

They are reported but never removed: readers may have them open, and a person must find the cause.
Loading the model again publishes intact files beside them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from sd_api.names import (
    BLOBS_DIR,
    INDEX_DIR,
    OWNER_FILE,
    RECEIPT_FILE,
    STAGING_DIR,
    STORE_DIR,
)
from sd_api.wire import PublishedFile, Receipt
from sd_loader.store import blobs, index
from sd_loader.store.folder import Folder, file_digest
from sd_loader.store.orphans import HASH, UID, links
from sd_loader.store.ownership import Version, owner_in
from sd_loader.store.receipt import read_receipt
from sd_loader.store.volume import Volume

_OURS = frozenset({STAGING_DIR, STORE_DIR, BLOBS_DIR, INDEX_DIR})


@dataclass(frozen=True)
class Altered:
    """The path of an altered file, and what is wrong with it."""

    path: str
    why: str


@dataclass
class Digests:
    """Computes digests of files. A file that several models share is read once."""

    _by_inode: dict[tuple[int, int], str] = field(default_factory=dict)

    def of(self, folder: Folder, name: str) -> str | None:
        """Return the BLAKE3 of a file. None if it cannot be read."""
        try:
            status = folder.status(name)
            inode = (status.st_dev, status.st_ino) if status else (0, 0)
            if inode not in self._by_inode:
                self._by_inode[inode] = file_digest(folder, name)
            return self._by_inode[inode]
        except OSError:
            return None


def altered(volume: Volume, digests: Digests | None = None) -> Iterator[Altered]:
    """Find the altered files of all versions: by their sizes, and by content if `digests` is set.

    A version that is removed in the meantime is skipped.
    """
    served = {(version.uid, version.load_hash) for version in links(volume).values()}
    for uid in _uids(volume):
        path = f"{STORE_DIR}/{uid}"
        if any(uid == owner for owner, _ in served) and _lacks_its_owner(volume, uid):
            yield Altered(f"{path}/{OWNER_FILE}", "it cannot be read")
        for name in _versions(volume, uid):
            for file, why in _of_version(volume, uid, name, (uid, name) in served, digests):
                yield Altered(f"{path}/{name}/{file}", why)


def altered_files(volume: Volume, version: Version, digests: Digests) -> list[tuple[str, str]]:
    """Compare one published version with its receipt, by sizes and content.

    Return, for each altered file, its path in the version's folder and what is wrong with it.
    """
    return _of_version(volume, version.uid, version.load_hash, True, digests)


def _lacks_its_owner(volume: Volume, uid: str) -> bool:
    """Whether a published model's folder has no readable owner.json.

    False for a folder that is being removed: its link is removed first.
    """
    folder = volume.find(STORE_DIR, uid)
    if folder is None:
        return False
    with folder:
        linked = {version.uid for version in links(volume).values()}
        if owner_in(folder) is not None or uid not in linked:
            return False
        # Read again: a load may have written the record and then the link since the first read.
        return owner_in(folder) is None and _is_still(volume, folder, STORE_DIR, uid)


def _is_still(volume: Volume, folder: Folder, *names: str) -> bool:
    """Whether the path with these names still leads to the open folder."""
    *parents, name = names
    parent = volume.find(*parents)
    if parent is None:
        return False
    with parent:
        return parent.is_same(name, folder)


def _uids(volume: Volume) -> list[str]:
    store = volume.find(STORE_DIR)
    if store is None:
        return []
    with store:
        return [uid for uid in store.names() if _is_folder(UID, store, uid)]


def _versions(volume: Volume, uid: str) -> list[str]:
    versions = volume.find(STORE_DIR, uid)
    if versions is None:
        return []
    with versions:
        return [name for name in versions.names() if _is_folder(HASH, versions, name)]


def _is_folder(pattern: re.Pattern[str], folder: Folder, name: str) -> bool:
    return pattern.fullmatch(name) is not None and folder.kind(name) == stat.S_IFDIR


def foreign_paths(volume: Volume) -> list[str]:
    """Find files and folders on the volume that the loader did not create."""
    paths = [
        name for name in volume.root.names() if name not in _OURS and _is_foreign(volume, name)
    ]
    store = volume.find(STORE_DIR)
    if store is not None:
        with store:
            paths += [
                f"{STORE_DIR}/{name}"
                for name in store.names()
                if not name.startswith(".trash-")
                and not (UID.fullmatch(name) and store.kind(name) in {None, stat.S_IFDIR})
            ]
    return paths + blobs.foreign_entries(volume) + index.foreign_entries(volume)


def _is_foreign(volume: Volume, name: str) -> bool:
    """Whether an entry of the volume exists and is not a link that the loader created."""
    kind = volume.root.kind(name)
    if kind != stat.S_IFLNK:
        return kind is not None
    target = volume.root.link_target(name)
    return target is not None and Version.parse(target) is None


def _of_version(
    volume: Volume, uid: str, name: str, is_served: bool, digests: Digests | None
) -> list[tuple[str, str]]:
    version = volume.find(STORE_DIR, uid, name)
    if version is None:
        return []
    with version:
        try:
            receipt = read_receipt(version)
        except (OSError, ValueError):
            # A version without receipt and link is an orphan, which the sweep reports as such.
            problems = [(RECEIPT_FILE, "it cannot be read")] if is_served else []
        else:
            problems = _compared(version, receipt, digests)
        return problems if _is_still(volume, version, STORE_DIR, uid, name) else []


def _compared(version: Folder, receipt: Receipt, digests: Digests | None) -> list[tuple[str, str]]:
    problems = []
    for path, file in receipt.files.items():
        why = _wrong_with(version, path, file, digests)
        if why:
            problems.append((path, why))
    added = {path for path, _ in version.entries()} - {RECEIPT_FILE, *receipt.files}
    return problems + [(path, "it is not in the receipt") for path in sorted(added)]


def _wrong_with(
    version: Folder, path: str, file: PublishedFile, digests: Digests | None
) -> str | None:
    size = version.file_size(path)
    if size is None:
        return "it is missing or is not a regular file"
    if size != file.size:
        return f"it has {size} bytes, but had {file.size} when it was published"
    if digests is None:
        return None
    *folders, name = path.split("/")
    try:
        with version.open_folder(*folders) as parent:
            digest = digests.of(parent, name)
    except OSError:
        digest = None
    if digest is None:
        return "it cannot be read"
    return None if digest == file.blake3 else "its content changed after it was published"
