"""A partial download on the volume, and whether the rest fits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.storage_errors import storage_errors

_USELESS = {
    Reason.DIGEST_MISMATCH,
    Reason.NOT_A_MODEL,
    Reason.TOO_LARGE,
    Reason.UNSAFE_MODEL,
    Reason.UNSUPPORTED_FORMAT,
}
"""Errors after which the bytes that are here are of no use."""
_PART = ".part"
_NOTE = ".note"
_CHUNK = 1 << 20
_HEAD = 1024


class PartialDownload:
    """`<name>.part` with its running digest, and `<name>.note` with its url and version."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = _digest_of(url)
        self._hash = hashlib.sha256()
        self.size = 0
        self.validator: str | None = None
        """The server's name for this version of the file. None if it gives none."""
        note = _read_note(path, url)
        with storage_errors(path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(
                os.open(_part(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b"
            )
            validator = note.get("validator")
            if isinstance(validator, str):
                self._resume(validator)
            else:
                self.restart(None)

    @staticmethod
    def finished(path: Path, url: str) -> tuple[str, int] | None:
        """Digest and size of the file if an earlier attempt finished it, else None."""
        note = _read_note(path, url)
        sha256, size = note.get("sha256"), note.get("size")
        if not isinstance(sha256, str) or not isinstance(size, int):
            return None
        try:
            return (sha256, size) if path.lstat().st_size == size else None
        except FileNotFoundError:
            return None

    @staticmethod
    def is_begun(path: Path, url: str) -> bool:
        """Whether an earlier attempt left anything of this file."""
        return bool(_read_note(path, url))

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._hash.hexdigest()

    def head(self) -> bytes:
        """The first bytes."""
        with storage_errors(self._path.name):
            self._file.flush()
        return os.pread(self._file.fileno(), _HEAD, 0)

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end."""
        with storage_errors(self._path.name):
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self, validator: str | None) -> None:
        """Begin again, with the version that the server serves now."""
        with storage_errors(self._path.name):
            self._file.seek(0)
            self._file.truncate()
            self._note({"validator": validator})
        self._hash = hashlib.sha256()
        self.size = 0
        self.validator = validator

    def finish(self) -> None:
        """Put the file in place."""
        with storage_errors(self._path.name):
            self._file.flush()
            # With the validator, so that a crash before the next line costs nothing.
            self._note({"validator": self.validator, "sha256": self.sha256, "size": self.size})
            _part(self._path).replace(self._path)

    def _discard(self) -> None:
        """Free the space."""
        _part(self._path).unlink(missing_ok=True)
        _note(self._path).unlink(missing_ok=True)

    def __enter__(self) -> PartialDownload:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, LoaderError) and error.reason in _USELESS:
            self._discard()
        with storage_errors(self._path.name):
            self._file.close()

    def _resume(self, validator: str) -> None:
        self.validator = validator
        while chunk := self._file.read(_CHUNK):
            self._hash.update(chunk)
            self.size += len(chunk)

    def _note(self, facts: dict[str, Any]) -> None:
        _note(self._path).write_text(json.dumps({"url": self._url, **facts}))


def ensure_space(folder: Path, needed: int) -> None:
    """Refuse a download that does not fit, before its first byte."""
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise LoaderError(
            Reason.INSUFFICIENT_STORAGE,
            f"the download needs {needed} more bytes and the volume has {free} free",
        )


def file_of(name: str) -> str:
    """The file that a `.part` or `.note` belongs to."""
    return name.removesuffix(_PART).removesuffix(_NOTE)


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _note(path: Path) -> Path:
    return path.with_name(path.name + _NOTE)


def _digest_of(url: str) -> str:
    """A digest of the url, which itself may hold a token and is not stored."""
    return hashlib.sha256(url.encode()).hexdigest()


def _read_note(path: Path, url: str) -> dict[str, Any]:
    """The note, if it is about this url. A note that a crash cut short is ignored."""
    try:
        note = json.loads(_note(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("url") == _digest_of(url) else {}
