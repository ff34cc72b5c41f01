"""Partial downloads: the bytes received so far, and a check that the rest fits on the volume."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sd_api.reasons import Reason
from sd_loader.bulk import PIECE_BYTES, write_at
from sd_loader.digests import Blake3
from sd_loader.errors import LoaderError
from sd_loader.storage_errors import storage_errors

_USELESS = {
    Reason.DAMAGED_FILE,
    Reason.DIGEST_MISMATCH,
    Reason.NOT_A_MODEL,
    Reason.TOO_LARGE,
    Reason.UNSAFE_MODEL,
    Reason.UNSUPPORTED_FORMAT,
}
"""Errors after which the partial download is deleted, because it cannot be used."""
_PART = ".part"
_NOTE = ".note"
_HEAD = 1024


@dataclass(frozen=True)
class Got:
    """A complete download: its digests, in lower-case hex, and its size."""

    blake3: str
    sha256: str
    size: int


class PartialDownload:
    """The bytes in `<name>.part`, their digests, and the record in `<name>.note`.

    The note has the file's version and a digest of the url, so that bytes of another file are never
    continued.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = _digest_of(url)
        self._blake3 = Blake3()
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.validator: str | None = None
        """The ETag or date of the file's version. None if the server states none."""
        note = _read_note(path, url)
        with storage_errors(path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(_part(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self._file = os.fdopen(fd, "r+b", buffering=0)
            validator = note.get("validator")
            if isinstance(validator, str):
                self._resume(validator)
            else:
                self.restart(None)

    @staticmethod
    def finished(path: Path, url: str) -> Got | None:
        """Return the digests and size of the file if an earlier attempt finished it."""
        note = _read_note(path, url)
        blake3, sha256, size = note.get("blake3"), note.get("sha256"), note.get("size")
        if not (isinstance(blake3, str) and isinstance(sha256, str) and isinstance(size, int)):
            return None
        try:
            return Got(blake3, sha256, size) if path.lstat().st_size == size else None
        except FileNotFoundError:
            return None

    @staticmethod
    def is_begun(path: Path, url: str) -> bool:
        """Whether an earlier attempt has begun to download this file from this url."""
        return bool(_read_note(path, url))

    @staticmethod
    def forget(path: Path) -> None:
        """Delete what an earlier attempt left for this path, but not the file at the path."""
        _part(path).unlink(missing_ok=True)
        _note(path).unlink(missing_ok=True)

    def got(self) -> Got:
        """Return the digests and the number of the bytes so far."""
        return Got(self._blake3.hexdigest(), self._sha256.hexdigest(), self.size)

    def head(self) -> bytes:
        """Return the first bytes of the file."""
        return os.pread(self._file.fileno(), _HEAD, 0)

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end."""
        with storage_errors(self._path.name):
            write_at(self._file.fileno(), chunk, self.size)
        self._digest(chunk)

    def restart(self, validator: str | None) -> None:
        """Drop all bytes. validator: of the version that is downloaded from now on."""
        with storage_errors(self._path.name):
            self._file.truncate(0)
            self._note({"validator": validator})
        self._blake3 = Blake3()
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.validator = validator

    def finish(self) -> None:
        """Record that the file is finished, and move it to its final name."""
        with storage_errors(self._path.name):
            # The note keeps the validator: after a crash before the next line, the file is resumed.
            self._note({"validator": self.validator, **asdict(self.got())})
            _part(self._path).replace(self._path)

    def __enter__(self) -> PartialDownload:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, LoaderError) and error.reason in _USELESS:
            self.forget(self._path)
        with storage_errors(self._path.name):
            self._file.close()

    def _resume(self, validator: str) -> None:
        self.validator = validator
        while chunk := self._file.read(PIECE_BYTES):
            self._digest(chunk)

    def _digest(self, chunk: bytes) -> None:
        self._blake3.update(chunk)
        self._sha256.update(chunk)
        self.size += len(chunk)

    def _note(self, facts: dict[str, Any]) -> None:
        _note(self._path).write_text(json.dumps({"url": self._url, **facts}))


def ensure_space(folder: Path, needed: int) -> None:
    """Raise InsufficientStorage if the volume has too little free space."""
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise LoaderError(
            Reason.INSUFFICIENT_STORAGE,
            f"the download needs {needed} more bytes, but the volume has only {free} free",
        )


def file_of(name: str) -> str:
    """Return the name of the file that a `.part` or `.note` belongs to."""
    return name.removesuffix(_PART).removesuffix(_NOTE)


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _note(path: Path) -> Path:
    return path.with_name(path.name + _NOTE)


def _digest_of(url: str) -> str:
    """Return a digest that identifies the url. The url itself may contain a token."""
    return hashlib.sha256(url.encode()).hexdigest()


def _read_note(path: Path, url: str) -> dict[str, Any]:
    """Read the note. Return an empty one if it is for another url, missing or incomplete."""
    try:
        note = json.loads(_note(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("url") == _digest_of(url) else {}
