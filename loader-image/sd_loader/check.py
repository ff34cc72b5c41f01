"""`sd-loader check`: compares published versions with their receipts. It only reads the volume."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from pydantic_core import from_json

from sd_api.check import CheckedVersion, CheckRequest, CheckResult
from sd_api.names import RECEIPT_FILE, STORE_DIR, immutable_path
from sd_api.wire import Receipt
from sd_loader.snippet import snippet
from sd_loader.store.folder import MISSING, Folder
from sd_loader.store.volume import Volume

_WIDTH = 200


def check(request: CheckRequest, store: Path, report: Callable[[str], None]) -> CheckResult:
    """Find the versions that are not complete, by the sizes of their files.

    A version that cannot be compared counts as unreadable, not as missing: it may be complete. A
    volume without a store folder has the outcome `empty`.

    report: takes the lines for the log, one for each version that is missing or unreadable.
    """
    missing, unreadable = [], []
    with Volume.open(store) as volume:
        if volume.root.kind(STORE_DIR) != stat.S_IFDIR:
            report(f"the volume has no folder {STORE_DIR}")
            return CheckResult(outcome="empty")
        for position, version in enumerate(request.versions):
            path = immutable_path(version.uid, version.load_hash)
            try:
                lacks = _lacks(volume, version, path)
            except (OSError, ValueError) as error:
                report(f"{path} cannot be compared: {snippet(str(error), _WIDTH)}")
                unreadable.append(position)
                continue
            if lacks is not None:
                report(f"{path}: {snippet(lacks, _WIDTH)} is missing or cut off")
                missing.append(position)
    return CheckResult(outcome="checked", missing=tuple(missing), unreadable=tuple(unreadable))


def _lacks(volume: Volume, version: CheckedVersion, path: str) -> str | None:
    """Return what a version lacks: link, folder, receipt or file. None if it is complete.

    A file of another size counts as missing. Raise OSError or ValueError if the version cannot be
    compared.
    """
    if volume.root.link_target(version.model_id) != path:
        return f"the link {version.model_id}"
    try:
        folder = volume.root.open_folder(*path.split("/"))
    except OSError as error:
        if error.errno in MISSING:
            return "the folder"
        raise
    with folder:
        receipt = _receipt(folder)
        if receipt is None or (receipt.uid, receipt.load_hash) != (version.uid, version.load_hash):
            return RECEIPT_FILE
        files = receipt.files.items()
        return next((name for name, file in files if folder.file_size(name) != file.size), None)


def _receipt(folder: Folder) -> Receipt | None:
    """Return the receipt. None if it is missing or cut off.

    Raise ValueError if it is valid JSON in another form: a newer loader may have written it.
    """
    try:
        content = folder.read(RECEIPT_FILE, Receipt.max_bytes)
    except FileNotFoundError:
        return None
    receipt = Receipt.decode(content)
    if receipt is None and _is_json(content):
        raise ValueError(f"{RECEIPT_FILE} is not a receipt that this loader knows")
    return receipt


def _is_json(content: bytes) -> bool:
    try:
        from_json(content)
    except ValueError:
        return False
    return True
