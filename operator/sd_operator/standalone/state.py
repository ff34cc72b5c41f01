"""The folder with standalone's state: database, kubeconfig, logs, and files of the running Pods.

Each store, which is the folder that stands for the models' PVC, has a state of its own. The state
is never in the store: a store may be on a network, where SQLite's locks do not hold, and other
users may read the store, but must not read the Secrets in the state.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sd_operator.standalone.database import Database
from sd_operator.standalone.errors import StandaloneError


@dataclass(frozen=True)
class State:
    """The state of one store. No other process uses it at the same time."""

    folder: Path
    """Private to the user."""
    database: Database
    is_ephemeral: bool
    """Whether the whole state is gone when this process ends."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path, store: Path) -> Iterator[State]:
        """Open the state in a folder, and create it if it is missing.

        Raise StandaloneError if the folder is in the store, is not private, or cannot be used.
        """
        # Containers get paths in this folder, but each runs in its own working folder, so the path
        # must be absolute.
        folder = folder.absolute()
        if folder.resolve().is_relative_to(store.resolve()):
            raise StandaloneError(
                f"{folder} is in the store {store}, whose readers must not see the objects of the"
                " API: name another folder with --state"
            )
        _make_private(folder)
        with closing(Database.open(folder / "objects.db")) as database:
            state = cls(folder, database, is_ephemeral=False)
            shutil.rmtree(state.pods, ignore_errors=True)  # A killed run leaves its files there.
            try:
                yield state
            finally:
                shutil.rmtree(state.pods, ignore_errors=True)

    @classmethod
    @contextmanager
    def ephemeral(cls) -> Iterator[State]:
        """Open a state that is in memory and in a temporary folder."""
        with (
            tempfile.TemporaryDirectory(prefix="sd-operator-") as folder,
            closing(Database.in_memory()) as database,
        ):
            yield cls(Path(folder), database, is_ephemeral=True)

    @property
    def pods(self) -> Path:
        """The folder for the volumes, Secrets and results of running Pods."""
        return self.folder / "pods"

    @property
    def logs(self) -> Path:
        """The folder for the containers' logs."""
        return self.folder / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig, unless the user names another."""
        return self.folder / "kubeconfig"


def default_folder(store: Path, env: Mapping[str, str]) -> Path:
    """Return the folder for a store's state: one for each real path, in the user's state folder."""
    base = Path(env.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise StandaloneError(
                "you have no home folder for the objects of this store: name a folder with"
                " --state, or keep nothing with --ephemeral"
            ) from error
    path = store.resolve()
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.name)[:40]
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return base / "sd-operator" / "standalone" / f"{name}-{digest}"


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise StandaloneError(
            f"cannot create the folder {folder} for the objects of this store: {error.strerror}."
            " Name another with --state, or keep nothing with --ephemeral"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StandaloneError(
            f"{folder} will have Secrets, so it must be yours and closed to others: name a new"
            f" folder with --state or, if this one has no other use, run chmod 700 {folder}"
        )
