"""Publishes a version: one rename puts it in place, a second one points the link to it."""

from __future__ import annotations

import contextlib
import errno
import re
import stat
from datetime import datetime, timedelta

from sd_api import names
from sd_api.load import Owner
from sd_api.names import RECEIPT_FILE
from sd_api.reasons import Reason
from sd_api.wire import Receipt
from sd_loader.errors import LoaderError
from sd_loader.store import blobs
from sd_loader.store.folder import Folder, insist, temporary_name
from sd_loader.store.ownership import (
    OwnerRecord,
    Version,
    confirm_ownership,
    is_same_model,
    read_owner,
    write_owner,
)
from sd_loader.store.receipt import find_published
from sd_loader.store.staging import OUT, Staging, remove_abandoned
from sd_loader.store.volume import Volume

_EXISTS = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_LINK_ATTEMPTS = 5
_HASH = re.compile(r"[0-9a-f]{16}")


def publish(
    volume: Volume, owner: Owner, model_id: str, staging: Staging, receipt: Receipt
) -> Receipt:
    """Publish the converted folder. Return the receipt of the published version.

    If another Pod has published this version in the meantime, keep the folder of that Pod.
    """
    confirm_ownership(volume, owner, model_id, receipt.load_hash)
    with staging.folder.open_folder(OUT) as out:
        shared = blobs.share(volume, out, receipt.files)
        receipt = receipt.sharing(shared)
        out.write(RECEIPT_FILE, receipt.encode().encode())
        out.sync_tree(public=True)
    with volume.make(names.STORE_DIR, owner.uid) as versions:
        published = _place(volume, owner.uid, staging, versions, receipt)
        versions.sync()
    try:
        link(volume, owner, model_id, receipt.load_hash)
    except (LoaderError, OSError):
        with contextlib.suppress(OSError):
            _withdraw(volume, owner.uid, model_id, receipt.load_hash)
        raise
    return published


def _place(
    volume: Volume, uid: str, staging: Staging, versions: Folder, receipt: Receipt
) -> Receipt:
    try:
        staging.folder.move(OUT, versions, receipt.load_hash)
    except OSError as error:
        if error.errno not in _EXISTS:
            raise
        published = find_published(volume, uid, receipt.load_hash)
        if published is not None:
            return published
        versions.discard(receipt.load_hash)
        staging.folder.move(OUT, versions, receipt.load_hash)
    return receipt


def _withdraw(volume: Volume, uid: str, model_id: str, load_hash: str) -> None:
    """Remove a version that could not be linked, unless the link leads to it."""
    versions = volume.find(names.STORE_DIR, uid)
    if versions is None:
        return
    with versions:
        if volume.root.link_target(model_id) != names.immutable_path(uid, load_hash):
            versions.discard(load_hash)
    volume.remove_if_empty(uid)


def link(volume: Volume, owner: Owner, model_id: str, load_hash: str) -> None:
    """Point the link `<modelId>` to this version, atomically."""
    target = names.immutable_path(owner.uid, load_hash)
    previous = None
    for _ in range(_LINK_ATTEMPTS):
        try:
            confirm_ownership(volume, owner, model_id, load_hash)
        except LoaderError:
            _remove_dangling(volume, model_id, target)
            raise
        current = volume.root.link_target(model_id)
        if current == target:
            _require_target(volume, owner.uid, model_id, target, previous)
            return
        previous = current
        _set_link(volume, owner.uid, model_id, target)
        volume.root.sync()
    raise LoaderError(
        Reason.LOADER_CRASHED,
        f"other processes keep changing the link {model_id} on the volume; this load is not"
        " published",
    )


def _require_target(
    volume: Volume, uid: str, model_id: str, target: str, previous: str | None
) -> None:
    """Raise LoaderError if the linked version does not exist: a sweep may have removed it.

    First, the link is pointed to the previous version again, or removed if there is none.
    """
    if _exists(volume, target):
        return
    if previous is not None and _exists(volume, previous):
        _set_link(volume, uid, model_id, previous)
    else:
        _remove_dangling(volume, model_id, target)
    raise LoaderError(
        Reason.LOADER_CRASHED,
        f"{model_id} was removed from the volume while it was being published",
    )


def _remove_dangling(volume: Volume, model_id: str, target: str) -> None:
    """Remove the link if it has this target and the target does not exist."""
    if volume.root.link_target(model_id) == target and not _exists(volume, target):
        volume.root.unlink(model_id)


def _exists(volume: Volume, target: str) -> bool:
    """Whether the version that is the target of a link exists."""
    version = Version.parse(target)
    if version is None:
        return False
    folder = volume.find(names.STORE_DIR, version.uid, version.load_hash)
    if folder is None:
        return False
    folder.close()
    return True


def _set_link(volume: Volume, uid: str, name: str, target: str) -> None:
    if volume.root.kind(name) is None:
        # A rename would replace a link that another model creates at this moment.
        with contextlib.suppress(FileExistsError):
            volume.root.make_link(name, target)
        return
    # A sweep may remove the empty folder, or take the new link for an orphan.
    insist(lambda: _replace_link(volume, uid, name, target))


def _replace_link(volume: Volume, uid: str, name: str, target: str) -> None:
    with volume.make(names.STAGING_DIR, uid) as staging:
        temporary = temporary_name("link")
        staging.make_link(temporary, target)
        staging.move(temporary, volume.root, name)


def tidy(volume: Volume, owner: Owner, load_hash: str, retain: timedelta, now: datetime) -> None:
    """Clean up after a version was published, and create its blobs.

    Remove the files of previous owners at once, and previous versions that were superseded more
    than `retain` ago.
    """
    record = read_owner(volume, owner.uid)
    if record is None:
        return
    blobs.register(volume, owner.uid, load_hash)
    for uid in record.taken_from:
        remove_previous(volume, owner, uid)
    with volume.make(names.STORE_DIR, owner.uid) as versions:
        superseded = _tidy_versions(volume, versions, record, load_hash, now - retain, now)
        updated = record.model_copy(update={"taken_from": (), "superseded": superseded})
        if updated != record:
            write_owner(versions, updated)
    remove_abandoned(volume, owner.uid)
    volume.remove_if_empty(owner.uid)
    blobs.drop_unused(volume)


def remove_previous(volume: Volume, owner: Owner, uid: str) -> None:
    """Remove the files of a previous owner of this model. Keep them if another model owns them."""
    record = read_owner(volume, uid)
    if record is not None and not is_same_model(record.owner, owner):
        return
    store = volume.find(names.STORE_DIR)
    if store is not None:
        with store:
            store.discard(uid)
    remove_abandoned(volume, uid)
    volume.remove_if_empty(uid)


def _tidy_versions(
    volume: Volume,
    versions: Folder,
    record: OwnerRecord,
    current: str,
    expired: datetime,
    now: datetime,
) -> dict[str, datetime]:
    """Remove expired versions and incomplete folders. Return when each kept one was superseded.

    A version is expired if it was superseded before `expired`. `current` is kept, too.
    """
    superseded: dict[str, datetime] = {}
    for name in versions.names():
        if name in {current, names.OWNER_FILE}:
            continue
        since = record.superseded.get(name, now)
        if since > expired and _is_published(volume, versions, record.owner.uid, name):
            superseded[name] = since
        else:
            versions.discard(name)
    return superseded


def _is_published(volume: Volume, versions: Folder, uid: str, name: str) -> bool:
    is_version = _HASH.fullmatch(name) is not None and versions.kind(name) == stat.S_IFDIR
    return is_version and find_published(volume, uid, name) is not None
