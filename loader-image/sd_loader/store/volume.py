"""The volume: opens its folders, and checks that it supports what publishing needs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sd_api.names import STAGING_DIR, STORE_DIR
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.storage_errors import NOT_ALLOWED, VOLUME_ONLY, storage_error
from sd_loader.store.folder import Folder, insist, temporary_name

_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})
_ON_ANY_KIND = VOLUME_ONLY | {errno.EACCES, errno.EIO, errno.ESTALE}
"""Errors that may occur on a supported volume, too."""


@dataclass(frozen=True)
class Volume:
    """An open volume."""

    root: Folder

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Volume]:
        """Open the volume that is mounted at this path."""
        try:
            root = Folder.open_root(path)
        except OSError as error:
            raise LoaderError(
                Reason.VOLUME_NOT_WRITABLE,
                f"cannot open the volume at {path}: {os.strerror(error.errno or 0)}",
            ) from error
        with root:
            yield cls(root)

    def find(self, *names: str) -> Folder | None:
        """Open a folder of the volume. None if it does not exist."""
        try:
            return self.root.open_folder(*names)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(error, names) from error

    def make(self, *names: str) -> Folder:
        """Open a folder of the volume. Create it if it does not exist."""
        try:
            # Another Job may remove an empty parent folder in between.
            return insist(lambda: self.root.make_folders(*names))
        except OSError as error:
            raise _refused(error, names) from error

    def unlink(self, path: str) -> None:
        """Remove a file or link. A missing one is not an error."""
        *folders, name = path.split("/")
        folder = self.find(*folders)
        if folder is not None:
            with folder:
                folder.unlink(name)

    def remove_if_empty(self, uid: str) -> None:
        """Remove a model's staging and store folders if they are empty."""
        for parent in (STAGING_DIR, STORE_DIR):
            folder = self.find(parent)
            if folder is not None:
                with folder:
                    folder.remove_if_empty(uid)
                self.root.remove_if_empty(parent)

    def probe(self, uid: str) -> None:
        """Refuse a volume that is not writable or does not support publishing."""
        try:
            # Another Pod of this model may take the probe for an orphan and remove it.
            insist(lambda: self._probe(uid))
        except OSError as error:
            raise storage_error(error) from error

    def _probe(self, uid: str) -> None:
        with self.make(STAGING_DIR, uid) as staging:
            name = temporary_name("probe")
            with staging.make_folder(name) as probe:
                try:
                    probe.write("file", b"probe")
                    _try_links_and_renames(probe)
                finally:
                    staging.remove(name)


def _try_links_and_renames(probe: Folder) -> None:
    try:
        probe.make_link("link", "file")
        probe.make_link("new-link", "other")
        probe.move("new-link", probe, "link")
        if probe.link_target("link") != "other":
            raise OSError(errno.EOPNOTSUPP, "a renamed link lost its target")
        with probe.make_folder("folder") as folder:
            probe.move("file", folder, "file")
        probe.move("folder", probe, "new-folder")
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _ON_ANY_KIND:
            raise
        raise LoaderError(
            Reason.UNSUPPORTED_VOLUME,
            "the volume does not support symbolic links, or cannot rename links or folders:"
            f" {os.strerror(error.errno or 0)}",
        ) from error


def _refused(error: OSError, names: tuple[str, ...]) -> OSError | LoaderError:
    """Return the LoaderError for a path that is not a folder, or may not be opened.

    Return any other error as it is.
    """
    path = "/".join(names)
    if error.errno in _NO_FOLDER:
        problem = "must be a folder, but a link or file is in its path; remove it"
        return LoaderError(Reason.VOLUME_NOT_WRITABLE, f"{path} on the volume {problem}")
    if error.errno in NOT_ALLOWED:
        return storage_error(error, path)
    return error
