"""Decides which model owns a model id on this volume.

The link `<modelId>` leads to the folder of a model, whose `owner.json` names its owner: a custom
resource. An owner with this model's namespace and name but another uid is the model's previous
owner, which was deleted: its files are taken over. Any other owner is a conflict.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass

from pydantic import AwareDatetime, ConfigDict, Field

from sd_api.fields import Contract, LoadHash, Uid
from sd_api.load import Owner
from sd_api.names import OWNER_FILE, STORE_DIR
from sd_api.reasons import Reason
from sd_api.spec import ModelId
from sd_loader.errors import LoaderError
from sd_loader.store.folder import Folder, insist
from sd_loader.store.volume import Volume

_RECORD_LIMIT = 1 << 20
_VERSION = re.compile(rf"{re.escape(STORE_DIR)}/([A-Za-z0-9-]{{1,64}})/([0-9a-f]{{16}})")


class OwnerRecord(Contract):
    """The content of `owner.json`. Unknown fields are ignored: a newer loader may write them."""

    model_config = ConfigDict(extra="ignore")

    owner: Owner
    model_id: ModelId
    load_hash: LoadHash = Field(description="The load that began last. Only it may publish.")
    released: bool = Field(
        default=False, description="The custom resource was deleted, but its files are kept."
    )
    taken_from: tuple[Uid, ...] = Field(
        default=(), description="Previous uids of this model. Their files are yet to be removed."
    )
    superseded: dict[LoadHash, AwareDatetime] = Field(
        default_factory=dict, description="When each previous version was superseded."
    )


@dataclass(frozen=True)
class Version:
    """A published version, by the uid and the loadHash in the target of its link."""

    uid: str
    load_hash: str

    @classmethod
    def parse(cls, target: str | None) -> Version | None:
        """Parse a link's target. None if the loader did not create this link."""
        match = _VERSION.fullmatch(target or "")
        return cls(*match.groups()) if match else None


def read_owner(volume: Volume, uid: str) -> OwnerRecord | None:
    """Read the record in the folder of this uid. None if it does not exist or is unreadable."""
    folder = volume.find(STORE_DIR, uid)
    if folder is None:
        return None
    with folder:
        return owner_in(folder)


def owner_in(folder: Folder) -> OwnerRecord | None:
    """Read the record in a model's open folder. None if it does not exist or is unreadable."""
    try:
        return OwnerRecord.model_validate_json(folder.read(OWNER_FILE, _RECORD_LIMIT))
    except (FileNotFoundError, ValueError):
        return None


def write_owner(folder: Folder, record: OwnerRecord) -> None:
    """Replace the record in a model's open folder."""
    folder.remove_unfinished()
    folder.write(OWNER_FILE, record.model_dump_json(by_alias=True, indent=2).encode())


def put_owner(volume: Volume, record: OwnerRecord) -> None:
    """Replace the record in a model's folder. Create the folder if it does not exist."""

    def put() -> None:
        with volume.make(STORE_DIR, record.owner.uid) as folder:
            write_owner(folder, record)

    # A sweep may remove a folder that is still empty.
    insist(put)


def predecessor(volume: Volume, owner: Owner, model_id: str) -> OwnerRecord | None:
    """Return the record of the previous owner whose files this model id is linked to, if any.

    Raise ModelIdConflict if another model or a foreign file has this id.
    """
    kind = volume.root.kind(model_id)
    if kind is None:
        return None
    version = Version.parse(volume.root.link_target(model_id))
    if version is None:
        entry = (
            "a link" if kind == stat.S_IFLNK else "a folder" if kind == stat.S_IFDIR else "a file"
        )
        raise LoaderError(
            Reason.MODEL_ID_CONFLICT,
            f"{model_id} on the volume is {entry} that the loader did not create",
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
    """Remove the folders of a model without published files, unless a newer load has begun.

    Keep them if the model has taken over files of a previous owner.
    """
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
    """Whether two owners have the same namespace and name. Their uids may differ."""
    return (one.namespace, one.name) == (other.namespace, other.name)


def take_ownership(volume: Volume, owner: Owner, model_id: str, load_hash: str) -> OwnerRecord:
    """Begin a load: create the model's folder, and record the previous owners that it replaces."""
    previous = predecessor(volume, owner, model_id)
    taken = () if previous is None else (previous.owner.uid, *previous.taken_from)
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
    """Check that this load may still publish.

    Raise LoaderError if the model was removed, a newer load began, or another model has the id.
    """
    predecessor(volume, owner, model_id)
    record = read_owner(volume, owner.uid)
    if record is None or record.released:
        raise LoaderError(
            Reason.LOADER_CRASHED,
            f"{model_id} was removed from the volume while it was being loaded",
        )
    if record.load_hash != load_hash:
        raise LoaderError(
            Reason.LOADER_CRASHED, f"a newer load of {model_id} has begun; this load stops"
        )
