"""The receipt inside a published version: what it holds, and how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from sd_api.fields import Contract, Count, LoadHash, Sha256, Uid
from sd_api.load import Artifact, LoadResult, Source
from sd_api.names import PREVIEW_FILE, STORE_DIR
from sd_loader.store.folder import Folder
from sd_loader.store.volume import Volume

RECEIPT_FILE = ".sd-receipt.json"

_RECEIPT_LIMIT = 16 << 20

_NAME_MAX = 255


def _names_only(path: str) -> str:
    if any(name in {".", ".."} or len(name.encode()) > _NAME_MAX for name in path.split("/")):
        raise ValueError("a path beneath is made of file names")
    return path


RelativePath = Annotated[
    str,
    StringConstraints(max_length=1024, pattern=r"^[^/\x00-\x1f]+(/[^/\x00-\x1f]+)*$"),
    AfterValidator(_names_only),
]


class PublishedFile(Contract):
    """One file of a version."""

    model_config = ConfigDict(extra="ignore")

    sha256: Sha256
    size: Count


class Receipt(Contract):
    """`.sd-receipt.json`; a newer loader's fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    uid: Uid
    load_hash: LoadHash
    source: Source
    artifact: Artifact
    message: str = Field(default="", description="Warnings of the conversion.")
    files: dict[RelativePath, PublishedFile]

    def result(self) -> LoadResult:
        """The answer of the load that this receipt proves."""
        return LoadResult(
            outcome="loaded",
            message=self.message,
            source=self.source,
            artifact=self.artifact,
            preview=PREVIEW_FILE in self.files,
        )

    def sharing(self, count: int) -> Receipt:
        """The receipt of a version that shares so many bytes with others."""
        artifact = self.artifact.model_copy(update={"shared_bytes": count})
        return self.model_copy(update={"artifact": artifact})

    def to_json(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(by_alias=True, indent=2, exclude_none=True).encode()


def folder_digest(files: Mapping[str, str]) -> str:
    """Digest of a folder: of one line `<sha256>  <path>` per file, sorted by path."""
    lines = (f"{sha256}  {path}\n" for path, sha256 in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_published(volume: Volume, uid: str, load_hash: str) -> Receipt | None:
    """The receipt of a version that lies on the volume, whole; None where there is none."""
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
    """The receipt in a version's folder; one that cannot be read is an OSError or ValueError."""
    return Receipt.model_validate_json(version.read(RECEIPT_FILE, _RECEIPT_LIMIT))
