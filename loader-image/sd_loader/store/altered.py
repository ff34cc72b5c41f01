"""Altered versions: published files that are no longer what their receipt says.

They are told and never removed: readers may have them open, and what is wrong with them is for a
person to find out. Loading the model anew publishes whole files beside them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from sd_api.names import BLOBS_DIR, STAGING_DIR, STORE_DIR
from sd_api.wire import PublishedFile, Receipt
from sd_loader.store import blobs
from sd_loader.store.folder import Folder, file_digest
from sd_loader.store.orphans import HASH, UID, links
from sd_loader.store.ownership import OWNER_FILE, Version, owner_in
from sd_loader.store.receipt import RECEIPT_FILE, read_receipt
from sd_loader.store.volume import Volume

_OURS = frozenset({STAGING_DIR, STORE_DIR, BLOBS_DIR})


@dataclass(frozen=True)
class Altered:
    """A path that is not as it was published, and what is wrong with it."""

    path: str
    why: str


@dataclass
class Digests:
    """Digests of files, each read once however many models hold it."""

    _known: dict[tuple[int, int], str] = field(default_factory=dict)

    def of(self, folder: Folder, name: str) -> str | None:
        """sha256 of a file; None where it cannot be read."""
        try:
            status = folder.status(name)
            inode = (status.st_dev, status.st_ino) if status else (0, 0)
            if inode not in self._known:
                self._known[inode] = file_digest(folder, name)
            return self._known[inode]
        except OSError:
            return None


def altered(volume: Volume, digests: Digests | None = None) -> Iterator[Altered]:
    """Every altered file of every version, by size, and by its bytes where digests are asked for.

    A version that is removed meanwhile is none.
    """
    served = {(version.uid, version.load_hash) for version in links(volume).values()}
    for uid in _uids(volume):
        path = f"{STORE_DIR}/{uid}"
        if any(uid == owner for owner, _ in served) and _lacks_its_owner(volume, uid):
            yield Altered(f"{path}/{OWNER_FILE}", "it cannot be read")
        for name in _versions(volume, uid):
            for file, why in _of_version(volume, uid, name, (uid, name) in served, digests):
                yield Altered(f"{path}/{name}/{file}", why)


def _lacks_its_owner(volume: Volume, uid: str) -> bool:
    """Whether a published model's folder has no readable record.

    A removal takes the link away first and then the folder as a whole.
    """
    folder = volume.find(STORE_DIR, uid)
    if folder is None:
        return False
    with folder:
        if owner_in(folder) is not None or uid not in {one.uid for one in links(volume).values()}:
            return False
        # Again: a load may have written it before it made the link.
        return owner_in(folder) is None and _is_still(volume, folder, STORE_DIR, uid)


def _is_still(volume: Volume, folder: Folder, *names: str) -> bool:
    """Whether an open folder has been neither removed nor replaced."""
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
    """Paths where only the loader has business and which are none of its."""
    found = [
        name for name in volume.root.names() if name not in _OURS and _is_no_link(volume, name)
    ]
    store = volume.find(STORE_DIR)
    if store is not None:
        with store:
            found += [
                f"{STORE_DIR}/{name}"
                for name in store.names()
                if not name.startswith(".trash-")
                and not (UID.fullmatch(name) and store.kind(name) in {None, stat.S_IFDIR})
            ]
    return found + blobs.foreign_entries(volume)


def _is_no_link(volume: Volume, name: str) -> bool:
    """Whether an entry of the volume is there and no link that a load has made."""
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
            # One that nobody is led to is an orphan.
            found = [(RECEIPT_FILE, "it cannot be read")] if is_served else []
        else:
            found = _compared(version, receipt, digests)
        return found if _is_still(volume, version, STORE_DIR, uid, name) else []


def _compared(version: Folder, receipt: Receipt, digests: Digests | None) -> list[tuple[str, str]]:
    found = []
    for path, file in receipt.files.items():
        why = _wrong_with(version, path, file, digests)
        if why:
            found.append((path, why))
    more = {path for path, _ in version.entries()} - {RECEIPT_FILE, *receipt.files}
    return found + [(path, "its receipt does not name it") for path in sorted(more)]


def _wrong_with(
    version: Folder, path: str, file: PublishedFile, digests: Digests | None
) -> str | None:
    size = version.file_size(path)
    if size is None:
        return "it is missing, or no file"
    if size != file.size:
        return f"it has {size} bytes, and had {file.size} when it was published"
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
    return None if digest == file.sha256 else "its bytes are not those that were published"
