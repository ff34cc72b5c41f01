"""Whose a model id is on this volume.

The link `<modelId>` says which model is published under it, and that model's `owner.json` says
whose it is. A model of the same namespace and name takes it over: its former uid is gone, or was
released. Anybody else's is a conflict.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass

from pydantic import AwareDatetime, ConfigDict, Field

from sd_api.fields import Contract, LoadHash, Uid
from sd_api.load import Owner
from sd_api.names import STORE_DIR
from sd_api.reasons import Reason
from sd_api.spec import ModelId
from sd_loader.errors import LoaderError
from sd_loader.store.folder import Folder, insist
from sd_loader.store.volume import Volume

OWNER_FILE = "owner.json"

_RECORD_LIMIT = 1 << 20
_VERSION = re.compile(rf"{re.escape(STORE_DIR)}/([A-Za-z0-9-]{{1,64}})/([0-9a-f]{{16}})")


class OwnerRecord(Contract):
    """`owner.json`; a newer loader's fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    owner: Owner
    model_id: ModelId
    load_hash: LoadHash = Field(description="The load that was begun last; no other may publish.")
    released: bool = Field(default=False, description="Its resource is gone, its files are kept.")
    taken_from: tuple[Uid, ...] = Field(
        default=(), description="Former uids of this model whose files are still to be removed."
    )
    superseded: dict[LoadHash, AwareDatetime] = Field(
        default_factory=dict, description="Since when a version is no longer the published one."
    )


@dataclass(frozen=True)
class Version:
    """One published version, as a link names it."""

    uid: str
    load_hash: str

    @classmethod
    def parse(cls, target: str | None) -> Version | None:
        """Read a link's target; None for a link that no load made."""
        match = _VERSION.fullmatch(target or "")
        return cls(*match.groups()) if match else None


def read_owner(volume: Volume, uid: str) -> OwnerRecord | None:
    """The record of a model's folder; None where there is none that can be read."""
    folder = volume.find(STORE_DIR, uid)
    if folder is None:
        return None
    with folder:
        return owner_in(folder)


def owner_in(folder: Folder) -> OwnerRecord | None:
    """The record in a model's open folder; None where there is none that can be read."""
    try:
        return OwnerRecord.model_validate_json(folder.read(OWNER_FILE, _RECORD_LIMIT))
    except (FileNotFoundError, ValueError):
        return None


def write_owner(folder: Folder, record: OwnerRecord) -> None:
    """Replace the record of a model's folder."""
    folder.remove_unfinished()
    folder.write(OWNER_FILE, record.model_dump_json(by_alias=True, indent=2).encode())


def put_owner(volume: Volume, record: OwnerRecord) -> None:
    """Replace the record of a model's folder, which is made when missing."""

    def put() -> None:
        with volume.make(STORE_DIR, record.owner.uid) as folder:
            write_owner(folder, record)

    # A sweep may remove a folder that is still empty.
    insist(put)


def predecessor(volume: Volume, owner: Owner, model_id: str) -> OwnerRecord | None:
    """The former self that is published under this id, if one is; anybody else is a conflict."""
    kind = volume.root.kind(model_id)
    if kind is None:
        return None
    version = Version.parse(volume.root.link_target(model_id))
    if version is None:
        what = (
            "a link" if kind == stat.S_IFLNK else "a folder" if kind == stat.S_IFDIR else "a file"
        )
        raise LoaderError(
            Reason.MODEL_ID_CONFLICT, f"{model_id} on the volume is {what} that no load has made"
        )
    if version.uid == owner.uid:
        return None
    record = read_owner(volume, version.uid)
    if record is None:
        if volume.find(STORE_DIR, version.uid) is None:
            return None
        raise LoaderError(
            Reason.MODEL_ID_CONFLICT,
            f"{model_id} is published from {STORE_DIR}/{version.uid}, whose {OWNER_FILE} cannot be"
            " read",
        )
    if not is_same_model(record.owner, owner):
        raise LoaderError(
            Reason.MODEL_ID_CONFLICT,
            f"{model_id} belongs to {record.owner.namespace}/{record.owner.name}",
        )
    return record


def give_up(volume: Volume, uid: str, load_hash: str) -> None:
    """Leave no folder behind for a model never published, unless a newer load has begun."""
    record = read_owner(volume, uid)
    store = volume.find(STORE_DIR)
    if store is None:
        return
    with store:
        if record is not None and record.load_hash == load_hash and not record.taken_from:
            with store.open_folder(uid) as folder:
                if folder.names() == [OWNER_FILE]:
                    folder.unlink(OWNER_FILE)
        store.remove_if_empty(uid)
    volume.remove_if_empty(uid)


def is_same_model(one: Owner, other: Owner) -> bool:
    """Whether these are the same model over time, whatever their uids."""
    return (one.namespace, one.name) == (other.namespace, other.name)


def take_ownership(volume: Volume, owner: Owner, model_id: str, load_hash: str) -> OwnerRecord:
    """Begin a load: make this model's folder, and remember which former self it replaces."""
    former = predecessor(volume, owner, model_id)
    taken = () if former is None else (former.owner.uid, *former.taken_from)
    record = read_owner(volume, owner.uid)
    earlier = () if record is None else record.taken_from
    wanted = OwnerRecord(
        owner=owner,
        model_id=model_id,
        load_hash=load_hash,
        taken_from=tuple(dict.fromkeys((*earlier, *taken))),
        superseded={} if record is None else record.superseded,
    )
    if wanted != record:
        put_owner(volume, wanted)
    return wanted


def confirm_ownership(volume: Volume, owner: Owner, model_id: str, load_hash: str) -> None:
    """Refuse to publish what was removed or superseded meanwhile, or belongs to another."""
    predecessor(volume, owner, model_id)
    record = read_owner(volume, owner.uid)
    if record is None or record.released:
        raise LoaderError(
            Reason.LOADER_CRASHED, f"{model_id} was removed from the volume while it was loaded"
        )
    if record.load_hash != load_hash:
        raise LoaderError(
            Reason.LOADER_CRASHED, f"a newer load of {model_id} has begun; this one is given up"
        )
