"""Removes or releases the files of a deleted model."""

from __future__ import annotations

from collections.abc import Set

from sd_api.load import Owner
from sd_api.names import STAGING_DIR, STORE_DIR
from sd_loader.store import blobs
from sd_loader.store.ownership import Version, put_owner, read_owner
from sd_loader.store.publish import remove_previous
from sd_loader.store.volume import Volume


def release(volume: Volume, owner: Owner) -> None:
    """Keep the published files for a later model of the same namespace and name."""
    record = read_owner(volume, owner.uid)
    if record is not None and not record.released:
        put_owner(volume, record.model_copy(update={"released": True}))
    _discard(volume, STAGING_DIR, owner.uid)
    volume.remove_if_empty(owner.uid)


def remove_model(volume: Volume, owner: Owner, model_id: str) -> None:
    """Remove a model's link, then its files. In this order, no reader finds only some of the files.

    Missing files are not an error. A link that leads to another model stays.
    """
    record = read_owner(volume, owner.uid)
    uids = {owner.uid, *(record.taken_from if record else ())}
    _unlink(volume, model_id, uids)
    for previous in uids - {owner.uid}:
        remove_previous(volume, owner, previous)
    for place in (STORE_DIR, STAGING_DIR):
        _discard(volume, place, owner.uid)
    # A load that was still running may have linked the version that is now removed.
    _unlink(volume, model_id, uids)
    volume.remove_if_empty(owner.uid)
    blobs.drop_unused(volume)


def _unlink(volume: Volume, model_id: str, uids: Set[str]) -> None:
    version = Version.parse(volume.root.link_target(model_id))
    if version is not None and version.uid in uids:
        volume.root.unlink(model_id)
        volume.root.sync()


def _discard(volume: Volume, place: str, uid: str) -> None:
    folder = volume.find(place)
    if folder is not None:
        with folder:
            folder.discard(uid)
