"""The API keys of the gateway's callers.

The key file has one line `id:sha256:namespace` per key, so it holds no key itself. It is usually a
mounted Secret, and is read again when it changes. A key is 256 random bits: nobody can guess it
from its digest, so the digest needs no salt.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

KEY_BYTES = 32
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DIGEST = re.compile(r"[0-9a-f]{64}")

_Version = tuple[int, int, int]


@dataclass(frozen=True)
class Key:
    """An API key, without the key itself."""

    id: str
    """The key's name in logs."""
    namespace: str
    """The namespace whose models the key gives access to."""
    digest: bytes = field(repr=False)
    """SHA-256 of the key. It signs the key's gallery sessions, so it must stay secret."""


class Keys:
    """The current keys of the key file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: _Version | None = None
        self._keys: tuple[Key, ...] = ()

    def find(self, key: str) -> Key | None:
        """Return the entry of this key, or None if the key is wrong.

        It compares the key with all entries, so that its duration reveals nothing about them.
        """
        digest = hashlib.sha256(key.encode()).digest()
        match = None
        for entry in self._current():
            if hmac.compare_digest(entry.digest, digest):
                match = entry
        return match if key else None

    def by_id(self, key_id: str) -> Key | None:
        """Return the key with this id, or None if the file no longer has it."""
        return next((entry for entry in self._current() if entry.id == key_id), None)

    @property
    def readable(self) -> bool:
        """Whether the file can be read and has at least one valid key."""
        return bool(self._current())

    def _current(self) -> tuple[Key, ...]:
        """Return the keys of the file; no keys while the file cannot be read."""
        try:
            # stat follows the links of a mounted Secret, whose target is replaced as a whole.
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if version != self._version:
                self._keys = tuple(parse(self._path.read_text()))
                self._version = version
                log.info("read %d keys from %s", len(self._keys), self._path)
        except (OSError, UnicodeDecodeError) as error:
            if self._keys or self._version is None:
                log.error("no key is accepted: cannot read %s: %s", self._path, error)
            self._keys, self._version = (), (0, 0, 0)
        return self._keys


def parse(text: str) -> Iterator[Key]:
    """Yield the keys of a key file; log the number of each invalid line and skip it."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # The log does not quote an invalid line: it may be a key that someone pasted.
        parts = [part.strip() for part in line.split(":")]
        if len(parts) != 3:
            log.error("line %d of the key file is not `id:sha256:namespace`", number)
            continue
        key_id, digest, namespace = parts
        if not ID.fullmatch(key_id):
            log.error("line %d of the key file: the id must match %s", number, ID.pattern)
        elif not DIGEST.fullmatch(digest):
            log.error("line %d of the key file: the digest is not 64 lower-case hex digits", number)
        elif not NAMESPACE.fullmatch(namespace):
            log.error("line %d of the key file: the namespace is not a valid name", number)
        elif key_id in lines:
            log.error("line %d of the key file: line %d has the same id", number, lines[key_id])
        else:
            lines[key_id] = number
            yield Key(key_id, namespace, bytes.fromhex(digest))


def new(namespace: str, key_id: str | None = None) -> tuple[str, str]:
    """Return a new key and its line for the key file; raise ValueError for an invalid argument."""
    key_id = key_id or f"{namespace[:50]}-{secrets.token_hex(4)}"
    if not NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"{namespace!r} is not a namespace name: use lower-case letters, digits and dashes"
        )
    if not ID.fullmatch(key_id):
        raise ValueError(
            f"{key_id!r} is not a key id: use letters, digits, dots, dashes and underscores"
        )
    key = secrets.token_urlsafe(KEY_BYTES)
    return key, f"{key_id}:{hashlib.sha256(key.encode()).hexdigest()}:{namespace}"
