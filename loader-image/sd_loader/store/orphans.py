"""Orphans: what is on the volume and nobody's any more.

Each is judged right before it is handed out, so that whoever removes it at once removes nothing
that a load has begun to use meanwhile. Whatever changed of late may be a living Pod's, also where
the file system has no locks to say so, and is no orphan.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sd_api.names import STAGING_DIR, STORE_DIR, immutable_path
from sd_loader.store import blobs
from sd_loader.store.folder import Folder, temporary_name
from sd_loader.store.ownership import OWNER_FILE, OwnerRecord, Version, read_owner
from sd_loader.store.receipt import read_receipt
from sd_loader.store.staging import is_held, remove_if_abandoned
from sd_loader.store.volume import Volume

UID = re.compile(r"[A-Za-z0-9-]{1,64}")
HASH = re.compile(r"[0-9a-f]{16}")

_TRASH = ".trash-"
_INTERRUPTED = "an interrupted run left it"


@dataclass(frozen=True)
class Times:
    """When things are old enough to go.

    idle_since: whoever changed nothing after this is no living Pod. expired: versions superseded
    before this have been kept for their readers long enough.
    """

    idle_since: datetime
    expired: datetime

    @classmethod
    def of(cls, now: datetime, older_than: timedelta, retain: timedelta) -> Times:
        """As of now."""
        return cls(idle_since=now - older_than, expired=now - retain)


@dataclass(frozen=True)
class Orphan:
    """A path that can go, and why; model_id is the link that must not lead there."""

    path: str
    why: str
    model_id: str | None = None


def orphans(volume: Volume, times: Times) -> Iterator[Orphan]:
    """Everything that is nobody's; blobs come last, as their holders may be among the others."""
    yield from _staging(volume, times)
    yield from _models(volume, times)
    yield from _links(volume)
    for path in blobs.unused(volume):
        yield Orphan(path, "no model holds this file")


def remove_orphan(volume: Volume, orphan: Orphan) -> bool:
    """Remove an orphan that was handed out just now; whether it is gone."""
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
        gone = folder.kind(name) is None
    if len(folders) > 1:
        volume.remove_if_empty(folders[1])
    return gone


def _discard_unless_published(volume: Volume, folder: Folder, name: str, orphan: Orphan) -> None:
    """Take it out of sight, and put it back if a load has published it at this very moment.

    A load that publishes it a moment later finds it gone, and is run again.
    """
    trash = temporary_name("trash")
    try:
        folder.move(name, folder, trash)
    except FileNotFoundError:
        return  # its model was removed meanwhile
    target = f"{volume.root.link_target(orphan.model_id) if orphan.model_id else None}/"
    if target.startswith(f"{orphan.path}/"):
        folder.move(trash, folder, name)
    else:
        folder.remove(trash)


def links(volume: Volume) -> dict[str, Version]:
    """The published models: which version each link leads to."""
    return _read(volume, volume.root.names())


def _read(volume: Volume, names: Iterable[str]) -> dict[str, Version]:
    found = {name: Version.parse(volume.root.link_target(name)) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def last_change(status: os.stat_result | None) -> datetime:
    """When an entry was last written, renamed or linked."""
    if status is None:
        return datetime.max.replace(tzinfo=UTC)  # gone, so somebody is at work
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
            # Read anew for each: to remove the one before took its time.
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
            without = "link leads here" if record else f"readable {OWNER_FILE}, and no link"
            model_id = record.model_id if record else None
            yield Orphan(f"{STORE_DIR}/{uid}", f"no {without}", model_id)


def _published(
    volume: Volume, uid: str, names: set[str]
) -> tuple[OwnerRecord | None, dict[str, Version]]:
    """Whose it is, and its links: those known, and the one that a load may just have set."""
    record = read_owner(volume, uid)
    found = _read(volume, names | ({record.model_id} if record else set()))
    return record, {name: version for name, version in found.items() if version.uid == uid}


def _is_idle(volume: Volume, store: Folder, folder: Folder, uid: str, times: Times) -> bool:
    """Whether no load of this model is under way."""
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
    """Why an entry of a published model's folder can go; None where it is to stay."""
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
        return None  # readers get it, or a load is about to give it to them
    try:
        with folder.open_folder(name) as version:
            read_receipt(version)
    except (OSError, ValueError):
        return "it has no readable receipt, and no link leads here" if idle else None
    since = record.superseded.get(name) if record else None
    if since is None:
        # No load has lived to record it: another version is published since the link was made.
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
            yield Orphan(name, "the link leads nowhere")


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
