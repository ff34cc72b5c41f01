"""The receipt in a published version: reads it, and checks that the version is complete."""

from __future__ import annotations

from sd_api.names import RECEIPT_FILE, STORE_DIR
from sd_api.wire import Receipt
from sd_loader.store.folder import Folder
from sd_loader.store.volume import Volume


def find_published(volume: Volume, uid: str, load_hash: str) -> Receipt | None:
    """Return the receipt of a complete version.

    Return None if the receipt is unreadable or belongs to another version, or if a file of the
    receipt is missing or has another size.
    """
    folder = volume.find(STORE_DIR, uid, load_hash)
    if folder is None:
        return None
    with folder:
        try:
            receipt = read_receipt(folder)
            sizes = {path: folder.file_size(path) for path in receipt.files}
        except (OSError, ValueError):
            return None
    whole = all(size == receipt.files[path].size for path, size in sizes.items())
    return receipt if whole and (receipt.uid, receipt.load_hash) == (uid, load_hash) else None


def read_receipt(version: Folder) -> Receipt:
    """Read the receipt in a version's folder. Raise OSError or ValueError if it is unreadable."""
    receipt = Receipt.decode(version.read(RECEIPT_FILE, Receipt.max_bytes))
    if receipt is None:
        raise ValueError(f"{RECEIPT_FILE} is not a receipt")
    return receipt
