"""The database in which standalone keeps its objects between its runs. Only this module knows SQL.

A write returns when the disk has it, so a kill at any moment loses nothing that a client has seen.
An open connection holds SQLite's exclusive lock, so only one process uses the file. The operating
system releases the lock when the process is killed.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sd_operator.standalone.errors import ApiError, Json, StandaloneError

ResourceId = tuple[str, str]
"""Plural and group."""
Key = tuple[str, str]
"""Namespace ("" for a cluster-scoped object) and name."""

FORMAT = 1
"""The version of the tables, which SQLite keeps as user_version; 0 means that there are none."""
_TABLES = """
CREATE TABLE objects (
    plural TEXT, api_group TEXT, namespace TEXT, name TEXT, body TEXT NOT NULL,
    PRIMARY KEY (plural, api_group, namespace, name)
) WITHOUT ROWID;
CREATE TABLE applied (
    uid TEXT, manager TEXT, manifest TEXT NOT NULL, PRIMARY KEY (uid, manager)
) WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_REVISION = "revision"


class Database:
    """An open database."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def in_memory(cls) -> Database:
        """Open an empty database that ends with the process."""
        database = cls(sqlite3.connect(":memory:", isolation_level=None), ":memory:")
        database._create_tables()
        return database

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open a file, or create one that only its owner can read; raise StandaloneError."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StandaloneError(f"cannot open the database {path}: {error}") from error
        database = cls(connection, str(path))
        try:
            database._prepare()
        except BaseException:
            connection.close()
            raise
        return database

    def _prepare(self) -> None:
        try:
            # The order matters: WAL needs no shared memory if the lock is already exclusive.
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > FORMAT:
                raise StandaloneError(
                    f"a newer sd-operator wrote the database {self._path}: start that version, or"
                    " move its folder away to start without its objects"
                )
            (problem,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if problem != "ok":
                raise sqlite3.DatabaseError(" ".join(problem.split()))
            if version == 0:
                self._create_tables()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise StandaloneError(
                    f"another standalone uses the database {self._path}: stop it first, or use the"
                    " kubeconfig that it has printed"
                ) from error
            raise StandaloneError(f"cannot open the database {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _create_tables(self) -> None:
        script = f"BEGIN;{_TABLES}PRAGMA user_version = {FORMAT};COMMIT;"
        self._connection.executescript(script)

    def _damaged(self, why: Exception) -> StandaloneError:
        return StandaloneError(
            f"the database {self._path} is damaged ({why}): move its folder away and start"
            " again. The published models stay, and standalone lists those that no resource names"
        )

    def close(self) -> None:
        """Close the file, and release it for other processes."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _write(self) -> Iterator[None]:
        """Return a context whose changes are written together, or none of them is.

        Raise an ApiError 500 if the write fails.
        """
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            text = f"cannot write to the database {self._path}: {error}"
            raise ApiError(500, "InternalError", text) from error

    def _read(self, query: str, *values: str) -> Iterator[tuple[str, ...]]:
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def _parse(self, text: str) -> Json:
        try:
            item: Json = json.loads(text)
        except ValueError as error:
            raise self._damaged(error) from error
        return item

    # Objects

    def objects(self) -> Iterator[tuple[ResourceId, Key, Json]]:
        """Yield all objects; raise StandaloneError if one cannot be read."""
        query = "SELECT plural, api_group, namespace, name, body FROM objects"
        for plural, group, namespace, name, body in self._read(query):
            yield (plural, group), (namespace, name), self._parse(body)

    def save(self, resource: ResourceId, key: Key, item: Json) -> None:
        """Write an object."""
        row = (*resource, *key, json.dumps(item))
        with self._write():
            self._connection.execute("REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", row)

    def remove(self, resource: ResourceId, key: Key, uid: str) -> None:
        """Remove an object, and the manifests that were applied to it."""
        query = (
            "DELETE FROM objects WHERE plural = ? AND api_group = ? AND namespace = ? AND name = ?"
        )
        with self._write():
            self._connection.execute(query, (*resource, *key))
            self._connection.execute("DELETE FROM applied WHERE uid = ?", (uid,))

    # Manifests of server-side apply

    def applied(self) -> Iterator[tuple[str, str, Json]]:
        """Yield uid, field manager and manifest of every server-side apply.

        Raise StandaloneError if a manifest cannot be read.
        """
        for uid, manager, manifest in self._read("SELECT uid, manager, manifest FROM applied"):
            yield uid, manager, self._parse(manifest)

    def save_applied(self, uid: str, manager: str, manifest: Json) -> None:
        """Write the last manifest that a field manager applied to an object."""
        row = (uid, manager, json.dumps(manifest))
        with self._write():
            self._connection.execute("REPLACE INTO applied VALUES (?, ?, ?)", row)

    # Settings

    def setting(self, name: str) -> str | None:
        """Return the value that was kept under a name; None if none was."""
        row = next(self._read("SELECT value FROM settings WHERE name = ?", name), None)
        return None if row is None else row[0]

    def keep(self, name: str, value: str) -> None:
        """Write a value under a name."""
        with self._write():
            self._connection.execute("REPLACE INTO settings VALUES (?, ?)", (name, value))

    def remember(self, name: str, make: Callable[[], str]) -> str:
        """Return the value that was kept under a name; if there is none, make one and keep it."""
        value = self.setting(name)
        if value is None:
            value = make()
            self.keep(name, value)
        return value

    @property
    def reserved(self) -> int:
        """The last reserved revision: no run has used a higher one. 0 if none was reserved."""
        return int(self.setting(_REVISION) or 0)

    def reserve(self, revision: int) -> None:
        """Reserve all revisions up to this one for the present run."""
        self.keep(_REVISION, str(revision))
