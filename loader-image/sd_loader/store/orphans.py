"""Finds orphans: files on the volume that no model uses any more.

Each orphan is checked right before it is yielded. So a caller that removes an orphan at once does
not remove files that a load has begun to use in the meantime. A file or folder that changed
recently is not an orphan: a running Pod may use it, and on some file systems no lock shows that.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sd_api.names import OWNER_FILE, STAGING_DIR, STORE_DIR, immutable_path
from sd_loader.store import blobs
from sd_loader.store.folder import Folder, temporary_name
from sd_loader.store.ownership import OwnerRecord, Version, read_owner
from sd_loader.store.receipt import read_receipt
from sd_loader.store.staging import is_held, remove_if_abandoned
from sd_loader.store.volume import Volume

UID = re.compile(r"[A-Za-z0-9-]{1,64}")
HASH = re.compile(r"[0-9a-f]{16}")

_TRASH = ".trash-"
_INTERRUPTED = "an interrupted run left it"


@dataclass(frozen=True)
class Times:
    """The points in time before which an entry may be an orphan."""

    idle_since: datetime
    """A load that has changed no file since this time counts as ended."""

    expired: datetime
    """A version that was superseded before this time is no longer kept for its readers."""

    @classmethod
    def of(cls, now: datetime, older_than: timedelta, retain: timedelta) -> Times:
        """Compute the times from the current time and the two periods."""
        return cls(idle_since=now - older_than, expired=now - retain)


@dataclass(frozen=True)
class Orphan:
    """A path on the volume that can be removed, and the reason."""

    path: str

    why: str

    model_id: str | None = None
    """The model id whose link must not lead to this path when the path is removed."""


def orphans(volume: Volume, times: Times) -> Iterator[Orphan]:
    """Find all orphans. Blobs come last, because versions that use them may be orphans, too."""
    yield from _staging(volume, times)
    yield from _models(volume, times)
    yield from _links(volume)
    for path in blobs.unused(volume):
        yield Orphan(path, "no model uses this file")


def remove_orphan(volume: Volume, orphan: Orphan) -> bool:
    """Remove an orphan that was just found. Return whether it is gone."""
    *folders, name = orphan.path.split("/")
    folder = volume.find(*folders)
    if folder is None:
        return True
    with folder:
        if folder.kind(name) != stat.S_IFDIR or name.startswith("."):
            folder.remove(name)
        elif folders == [STAGING_DIR]:
            folder.remove_if_empty(name)
        elif folders[0] == STAGING_DIR:
            remove_if_abandoned(folder, name)
        else:
            _discard_unless_published(volume, folder, name, orphan)
        is_gone = folder.kind(name) is None
    if len(folders) > 1:
        volume.remove_if_empty(folders[1])
    return is_gone


def _discard_unless_published(volume: Volume, folder: Folder, name: str, orphan: Orphan) -> None:
    """Rename a folder, then remove it. Rename it back if a load has published it in between.

    A load that publishes it after the rename fails and is tried again.
    """
    trash = temporary_name("trash")
    try:
        folder.move(name, folder, trash)
    except FileNotFoundError:
        return  # Its model was removed in the meantime.
    target = f"{volume.root.link_target(orphan.model_id) if orphan.model_id else None}/"
    if target.startswith(f"{orphan.path}/"):
        folder.move(trash, folder, name)
    else:
        folder.remove(trash)


def links(volume: Volume) -> dict[str, Version]:
    """Return the links of the published models, and the version that each leads to."""
    return _read(volume, volume.root.names())


def _read(volume: Volume, names: Iterable[str]) -> dict[str, Version]:
    versions = {name: Version.parse(volume.root.link_target(name)) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def last_change(status: os.stat_result | None) -> datetime:
    """Return when an entry was last written, renamed or linked."""
    if status is None:
        return datetime.max.replace(tzinfo=UTC)  # It was just removed: another process is active.
    return datetime.fromtimestamp(max(status.st_mtime, status.st_ctime), UTC)


def _staging(volume: Volume, times: Times) -> Iterator[Orphan]:
    staging = volume.find(STAGING_DIR)
    if staging is None:
        return
    with staging:
        for uid in staging.names():
            if staging.kind(uid) != stat.S_IFDIR or uid.startswith("."):
                if last_change(staging.status(uid)) < times.idle_since:
                    yield Orphan(f"{STAGING_DIR}/{uid}", _INTERRUPTED)
                continue
            pods = volume.find(STAGING_DIR, uid)
            if pods is None:
                continue
            with pods:
                if not pods.names() and last_change(staging.status(uid)) < times.idle_since:
                    yield Orphan(f"{STAGING_DIR}/{uid}", "it is empty")
                for name in pods.names():
                    since = _last_work(pods, name)
                    if since < times.idle_since and not is_held(pods, name):
                        yield Orphan(
                            f"{STAGING_DIR}/{uid}/{name}",
                            f"no Pod has worked here since {_stamp(since)}",
                        )


def _last_work(pods: Folder, name: str) -> datetime:
    newest = last_change(pods.status(name))
    if pods.kind(name) == stat.S_IFDIR:
        try:
            with pods.open_folder(name) as folder:
                for _, status in folder.entries():
                    newest = max(newest, last_change(status))
        except FileNotFoundError:
            return last_change(None)
    return newest


def _models(volume: Volume, times: Times) -> Iterator[Orphan]:
    store = volume.find(STORE_DIR)
    if store is None:
        return
    names: dict[str, set[str]] = {}
    for name, version in links(volume).items():
        names.setdefault(version.uid, set()).add(name)
    with store:
        for uid in store.names():
            path = f"{STORE_DIR}/{uid}"
            if uid.startswith(_TRASH):
                yield Orphan(path, _INTERRUPTED)
            elif UID.fullmatch(uid) and store.kind(uid) == stat.S_IFDIR:
                yield from _model(volume, store, uid, names.get(uid, set()), times)


def _model(
    volume: Volume, store: Folder, uid: str, names: set[str], times: Times
) -> Iterator[Orphan]:
    folder = volume.find(STORE_DIR, uid)
    if folder is None:
        return
    with folder:
        for name in folder.names():
            # Read again for each entry, because the caller may have removed the previous one.
            record, published = _published(volume, uid, names)
            if not published:
                break
            why = _leftover(volume, folder, name, record, published, times)
            if why:
                model_id = record.model_id if record else None
                yield Orphan(f"{STORE_DIR}/{uid}/{name}", why, model_id)
        record, published = _published(volume, uid, names)
        kept = published or (record is not None and record.released)
        if not kept and _is_idle(volume, store, folder, uid, times):
            why = "no link leads here" if record else f"no readable {OWNER_FILE} and no link"
            model_id = record.model_id if record else None
            yield Orphan(f"{STORE_DIR}/{uid}", why, model_id)


def _published(
    volume: Volume, uid: str, names: set[str]
) -> tuple[OwnerRecord | None, dict[str, Version]]:
    """Return the record of a uid, and the links that lead to its versions.

    Reads the links in `names`, and the link of the record, which a load may just have created.
    """
    record = read_owner(volume, uid)
    versions = _read(volume, names | ({record.model_id} if record else set()))
    return record, {name: version for name, version in versions.items() if version.uid == uid}


def _is_idle(volume: Volume, store: Folder, folder: Folder, uid: str, times: Times) -> bool:
    """Whether no load of this model is running."""
    newest = max(
        last_change(store.status(uid)),
        *(last_change(folder.status(name)) for name in folder.names()),
        datetime.min.replace(tzinfo=UTC),
    )
    pods = volume.find(STAGING_DIR, uid)
    if pods is None:
        return newest < times.idle_since
    with pods:
        for name in pods.names():
            newest = max(newest, _last_work(pods, name))
        return newest < times.idle_since and not any(is_held(pods, name) for name in pods.names())


def _leftover(
    volume: Volume,
    folder: Folder,
    name: str,
    record: OwnerRecord | None,
    published: dict[str, Version],
    times: Times,
) -> str | None:
    """Return why an entry of a published model's folder can be removed. None if it must stay."""
    if name == OWNER_FILE:
        return None
    if name.startswith(_TRASH):
        return _INTERRUPTED
    changed = last_change(folder.status(name))
    idle = changed < times.idle_since
    if not HASH.fullmatch(name) or folder.kind(name) != stat.S_IFDIR:
        return _INTERRUPTED if idle else None
    model_ids = [link for link, version in published.items() if version.load_hash == name]
    begun_last = record is not None and record.load_hash == name
    recently = last_change(folder.status(OWNER_FILE)) >= times.idle_since
    if model_ids or (begun_last and recently):
        return None  # It is published, or a load is about to publish it.
    try:
        with folder.open_folder(name) as version:
            read_receipt(version)
    except (OSError, ValueError):
        return "it has no readable receipt, and no link leads here" if idle else None
    since = record.superseded.get(name) if record else None
    if since is None:
        # The load was killed before it recorded the time, so the link's own time is used instead.
        made = (last_change(volume.root.status(link)) for link in published)
        since = max(changed, *made)
        if since >= times.idle_since:
            return None
    return f"superseded since {_stamp(since)}" if since < times.expired else None


def _links(volume: Volume) -> Iterator[Orphan]:
    for name, version in links(volume).items():
        folder = volume.find(STORE_DIR, version.uid, version.load_hash)
        if folder is not None:
            folder.close()
        elif volume.root.link_target(name) == immutable_path(version.uid, version.load_hash):
            yield Orphan(name, "the link's target does not exist")


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
