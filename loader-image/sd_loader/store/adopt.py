"""Adopts a version of the model's previous owner, so that it is not downloaded again."""

from __future__ import annotations

import os

from sd_api.names import STORE_DIR
from sd_api.wire import Progress, Receipt, Stage
from sd_loader.bulk import copy_file
from sd_loader.progress import Report
from sd_loader.store.folder import NO_HARD_LINKS, Folder, file_digest
from sd_loader.store.ownership import OwnerRecord
from sd_loader.store.receipt import find_published
from sd_loader.store.staging import Staging
from sd_loader.store.volume import Volume


def adopt(
    volume: Volume, record: OwnerRecord, load_hash: str, staging: Staging, report: Report
) -> Receipt | None:
    """Put a previous owner's version with this loadHash into `out`, and return its receipt.

    Return None if no previous owner has an intact version.
    """
    for previous in record.taken_from:
        receipt = find_published(volume, previous, load_hash)
        if receipt is not None and _bring_over(volume, receipt, staging, report):
            return receipt.model_copy(update={"uid": record.owner.uid})
    return None


def _bring_over(volume: Volume, receipt: Receipt, staging: Staging, report: Report) -> bool:
    total = sum(file.size for file in receipt.files.values())
    done = 0
    version = volume.find(STORE_DIR, receipt.uid, receipt.load_hash)
    if version is None:
        return False
    with version, staging.fresh_out() as out:
        for path, file in receipt.files.items():
            report(Progress(stage=Stage.VERIFYING, bytes_done=done, bytes_total=total))
            *folders, name = path.split("/")
            try:
                with version.open_folder(*folders) as old, out.make_folders(*folders) as new:
                    link_or_copy(old, name, new)
                    digest = file_digest(new, name)
            except FileNotFoundError:
                return False
            if digest != file.blake3:
                return False
            done += file.size
    return True


def link_or_copy(old: Folder, name: str, new: Folder) -> None:
    """Put a file into another folder: as a hard link, or as a copy if links are not supported."""
    try:
        old.link(name, new, name)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with os.fdopen(old.open_file(name), "rb") as source, new.create(name) as target:
            copy_file(source.fileno(), target.fileno())
