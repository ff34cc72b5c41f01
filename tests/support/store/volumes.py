"""Loads made-up files onto a volume, for tests of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sd_api.load import Owner
from sd_api.reasons import Reason
from sd_api.wire import Artifact, PublishedFile, Receipt, Source
from sd_loader.digests import folder_digest
from sd_loader.errors import LoaderError
from sd_loader.store import adopt as adoption
from sd_loader.store import index, removal
from sd_loader.store.folder import Folder
from sd_loader.store.ownership import take_ownership
from sd_loader.store.publish import publish, tidy
from sd_loader.store.staging import begin
from sd_loader.store.volume import Volume

MODEL_ID = "m"
HASH = "0" * 16
NEW_HASH = "1" * 16
OWNER = Owner(uid="uid-1", namespace="ns", name="m")
NAMESAKE = Owner(uid="uid-2", namespace="ns", name="m")
STRANGER = Owner(uid="uid-3", namespace="other", name="m")
DAY = timedelta(days=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FILES = {"model_index.json": b"{}", "unet/config.json": b'{"a": 1}'}


def load(
    volume: Volume,
    owner: Owner = OWNER,
    load_hash: str = HASH,
    model_id: str = MODEL_ID,
    files: Mapping[str, bytes] = FILES,
) -> Receipt:
    """Do a whole load with made-up files."""
    receipt = load_untidily(volume, owner, load_hash, model_id, files)
    tidy(volume, owner, load_hash, DAY, NOW)
    index.refresh(volume, owner.uid, owner.namespace)
    return receipt


def remove(volume: Volume, owner: Owner, model_id: str) -> None:
    """Do a whole removal."""
    removal.remove_model(volume, owner, model_id)
    index.refresh(volume, owner.uid, owner.namespace)


def load_untidily(
    volume: Volume,
    owner: Owner,
    load_hash: str,
    model_id: str,
    files: Mapping[str, bytes] = FILES,
) -> Receipt:
    """Do a load that ends right after publishing, before the model is tidied up and listed."""
    take_ownership(volume, owner, model_id, load_hash)
    with begin(volume, owner.uid, "pod", load_hash) as staging:
        receipt = write_out(staging.fresh_out(), owner, load_hash, files)
        receipt = publish(volume, owner, model_id, staging, receipt)
        staging.discard()
    return receipt


def write_out(
    out: Folder, owner: Owner, load_hash: str, files: Mapping[str, bytes] = FILES
) -> Receipt:
    """Write the made-up files as a conversion would, and return their receipt."""
    entries = {}
    with out:
        for path, content in files.items():
            *folders, name = path.split("/")
            with out.make_folders(*folders) as parent:
                parent.write(name, content)
                entries[path] = PublishedFile(
                    blake3=adoption.file_digest(parent, name), size=len(content)
                )
    digest = folder_digest({path: entry.blake3 for path, entry in entries.items()})
    return Receipt(
        uid=owner.uid,
        load_hash=load_hash,
        source=Source(size_bytes=5),
        artifact=Artifact(digest=digest, size_bytes=10, files=len(entries)),
        files=entries,
    )


def tree(root: Path) -> dict[str, str | bytes]:
    """Return everything on the volume: contents of files and targets of links."""
    found: dict[str, str | bytes] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "/"
        else:
            found[name] = path.read_bytes()
    return found


@contextmanager
def refused(reason: Reason, message: str) -> Iterator[None]:
    """Check that the block raises the loader's error with this reason and message."""
    with pytest.raises(LoaderError, match=message) as caught:
        yield
    assert caught.value.reason is reason


def download(volume: Volume, pod: str, load_hash: str = HASH) -> None:
    """Leave a partial download on the volume, as a Pod that died would."""
    with begin(volume, OWNER.uid, pod, load_hash) as staging, staging.source() as source:
        source.write("file", b"part")
