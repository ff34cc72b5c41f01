"""The keys of the gateway's callers: a file of lines `id:sha256:namespace`, of hashes only.

The file is a mounted Secret, or any other; it is read again when it has changed. A key is 256
random bits, so that its plain digest tells nothing of it.
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
    """Who calls, and the namespace whose models they see.

    digest: of the key itself. It is secret enough to sign sessions with: who has it not cannot,
    and a session ends with its key.
    """

    id: str
    namespace: str
    digest: bytes = field(repr=False)


class Keys:
    """The keys that the file holds now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: _Version | None = None
        self._keys: tuple[Key, ...] = ()

    def find(self, key: str) -> Key | None:
        """The key of this text. Takes as long for a wrong one: all lines are compared."""
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for one in self._current():
            if hmac.compare_digest(one.digest, digest):
                found = one
        return found if key else None

    def by_id(self, key_id: str) -> Key | None:
        """The key of this id, while the file has it."""
        return next((one for one in self._current() if one.id == key_id), None)

    @property
    def readable(self) -> bool:
        """Whether the file can be read, and holds a key."""
        return bool(self._current())

    def _current(self) -> tuple[Key, ...]:
        """What the file says; nobody's key is good while it cannot be read."""
        try:
            # Follows the links of a mounted Secret, whose target is replaced as a whole.
            stat = self._path.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if version != self._version:
                self._keys = tuple(parse(self._path.read_text()))
                self._version = version
                log.info("keys read from %s: %d", self._path, len(self._keys))
        except (OSError, UnicodeDecodeError) as problem:
            if self._keys or self._version is None:
                log.error("no key is accepted: %s: %s", self._path, problem)
            self._keys, self._version = (), (0, 0, 0)
        return self._keys


def parse(text: str) -> Iterator[Key]:
    """The keys of a file's text; lines that are none are logged by their numbers, and left out."""
    taken: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # A bad line may be a key that somebody pasted: it is not quoted.
        parts = [part.strip() for part in line.split(":")]
        if len(parts) != 3:
            log.error("line %d of the keys is not `id:sha256:namespace`", number)
            continue
        key_id, digest, namespace = parts
        if not ID.fullmatch(key_id):
            log.error("line %d of the keys: the id must match %s", number, ID.pattern)
        elif not DIGEST.fullmatch(digest):
            log.error("line %d of the keys: the digest is not 64 lower-case hex digits", number)
        elif not NAMESPACE.fullmatch(namespace):
            log.error("line %d of the keys: the namespace is not one", number)
        elif key_id in taken:
            log.error("line %d of the keys: line %d has this id", number, taken[key_id])
        else:
            taken[key_id] = number
            yield Key(key_id, namespace, bytes.fromhex(digest))


def new(namespace: str, key_id: str | None = None) -> tuple[str, str]:
    """A new key, and its line of the file; raises ValueError where id or namespace is none."""
    key_id = key_id or f"{namespace[:50]}-{secrets.token_hex(4)}"
    if not NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace!r} is no namespace: lower-case letters, digits and dashes")
    if not ID.fullmatch(key_id):
        raise ValueError(f"{key_id!r} is no id: letters, digits, dots, dashes and underscores")
    key = secrets.token_urlsafe(KEY_BYTES)
    return key, f"{key_id}:{hashlib.sha256(key.encode()).hexdigest()}:{namespace}"
