"""An open folder. Every operation is relative to its descriptor and does not follow links.

Anyone who can write to the volume can plant links on it. Therefore a name is one path component
that is opened relative to an open folder, so that a checked path cannot change its meaning later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, TypeVar
from uuid import uuid4

from sd_loader.digests import blake3_of_file

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of opening a path that does not exist, or in which a file or a link is in the way."""
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of `link` if the volume does not support hard links, or this file cannot have more."""

_HERE = PurePosixPath()
_NEW = "new"
_ATTEMPTS = 5

T = TypeVar("T")


def insist(action: Callable[[], T]) -> T:
    """Run an action. Repeat it a few times if a file or folder that it uses was just removed."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError):
            return action()
    return action()


def temporary_name(kind: str) -> str:
    """Return a new hidden name. It cannot equal a Pod's name, which never starts with a dot."""
    return f".{kind}-{uuid4().hex[:12]}"


class Folder:
    """An open folder. Use it in a `with` statement."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open_root(cls, path: Path) -> Folder:
        """Open the root of the volume. Only this path may contain links."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        os.close(self.fd)

    @property
    def path(self) -> Path:
        """A path to this folder for code that needs one. It stays valid if the folder is moved."""
        return Path(f"/proc/self/fd/{self.fd}")

    def open_folder(self, *names: str) -> Folder:
        """Open a folder below this one. A link or file in its path is an error."""
        fd = os.dup(self.fd)
        for name in names:
            try:
                child = os.open(_component(name), _OPEN_FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = child
        return Folder(fd)

    def make_folder(self, name: str) -> Folder:
        """Open a folder. Create it if it does not exist."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_component(name), DIRECTORY_MODE, dir_fd=self.fd)
        return self.open_folder(name)

    def make_folders(self, *names: str) -> Folder:
        """Open a folder below this one. Create it and its parents if they do not exist."""
        folder = self.open_folder()
        for name in names:
            with folder as parent:
                folder = parent.make_folder(name)
        return folder

    def names(self) -> list[str]:
        """Return the names in this folder, sorted."""
        return sorted(os.listdir(self.fd))  # noqa: PTH208 - pathlib takes no descriptor

    def kind(self, name: str) -> int | None:
        """Return the type of an entry (a value of `stat.S_IFMT`). None if it does not exist."""
        status = self.status(name)
        return None if status is None else stat.S_IFMT(status.st_mode)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of an entry without following links. None if it does not exist."""
        try:
            return os.stat(_component(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def file_size(self, path: str) -> int | None:
        """Return the size of a regular file below this folder. None if there is no such file."""
        *folders, name = path.split("/")
        try:
            with self.open_folder(*folders) as parent:
                status = os.stat(_component(name), dir_fd=parent.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in MISSING:
                return None
            raise
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def is_same(self, name: str, other: Folder) -> bool:
        """Whether the entry is the given open folder."""
        status = self.status(name)
        return status is not None and os.path.samestat(status, os.fstat(other.fd))

    def open_file(self, name: str) -> int:
        """Open a regular file for reading. Raise FileNotFoundError for anything else."""
        try:
            fd = os.open(_component(name), _OPEN_FILE, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileNotFoundError(f"{name} is a link") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(f"{name} is not a regular file")
        return fd

    def read(self, name: str, limit: int) -> bytes:
        """Read a small file. Raise ValueError if it is larger than the limit."""
        with os.fdopen(self.open_file(name), "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"{name} is larger than {limit} bytes")
        return content

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing. Raise FileExistsError if it exists."""
        return os.fdopen(os.open(_component(name), _NEW_FILE, FILE_MODE, dir_fd=self.fd), "wb")

    def write(self, name: str, content: bytes) -> None:
        """Replace a file atomically and durably."""
        # Another Pod may take the temporary file for an orphan and remove it.
        insist(lambda: self.write_into(self, name, content))
        self.sync()

    def write_into(self, target: Folder, name: str, content: bytes) -> None:
        """Replace a file of another folder atomically. The temporary file is in this folder."""
        temporary = temporary_name(_NEW)
        with self.create(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.move(temporary, target, name)

    def remove_unfinished(self) -> None:
        """Remove the temporary files of interrupted calls of `write`."""
        for name in self.names():
            if name.startswith(f".{_NEW}-"):
                self.unlink(name)

    def move(self, name: str, target: Folder, new_name: str) -> None:
        """Move an entry to another folder of the volume, atomically."""
        os.rename(_component(name), _component(new_name), src_dir_fd=self.fd, dst_dir_fd=target.fd)

    def link(self, name: str, target: Folder, new_name: str) -> None:
        """Create a hard link to an entry. A symbolic link is not followed."""
        os.link(
            _component(name),
            _component(new_name),
            src_dir_fd=self.fd,
            dst_dir_fd=target.fd,
            follow_symlinks=False,
        )

    def link_target(self, name: str) -> str | None:
        """Return the target of a symbolic link. None if the entry is missing or is not a link."""
        try:
            return os.readlink(_component(name), dir_fd=self.fd)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL}:
                return None
            raise

    def make_link(self, name: str, target: str) -> None:
        """Create a symbolic link. Raise FileExistsError if the name exists."""
        os.symlink(target, _component(name), dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file or link. A missing one is not an error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_component(name), dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove an entry with its content. A link is removed, not followed."""
        for attempt in range(_ATTEMPTS):
            if self.kind(name) != stat.S_IFDIR:
                self.unlink(name)
                return
            try:
                shutil.rmtree(_component(name), dir_fd=self.fd)
            except FileNotFoundError:
                continue  # Another process removes it, too.
            except OSError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def discard(self, name: str) -> None:
        """Hide an entry by an atomic rename, then remove it.

        This also removes the leftovers of an interrupted call of `discard`. It needs no free space
        on the volume.
        """
        trash = f".trash-{_component(name)}"
        self.remove(trash)
        with contextlib.suppress(FileNotFoundError):
            self.move(name, self, trash)
            self.remove(trash)

    def remove_if_empty(self, name: str) -> None:
        """Remove a folder if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(_component(name), dir_fd=self.fd)

    def sync(self) -> None:
        """Make renames in this folder durable."""
        os.fsync(self.fd)

    def files(self) -> list[str]:
        """Return the paths of all entries below this folder that are not folders, sorted."""
        return sorted(str(path / name) for path, _, names in self._walk() for name in names)

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the path and status of all entries below this folder that are not folders."""
        for path, folder, names in self._walk():
            for name in names:
                status = folder.status(name)
                if status is not None:
                    yield str(path / name), status

    def sync_tree(self, *, public: bool = False) -> None:
        """Make all files below this folder durable.

        public: also make them readable by all users. A link or device is an error.
        """
        for _, folder, names in self._walk():
            for name in names:
                file = folder.open_file(name)
                try:
                    _sync(file, FILE_MODE if public else None)
                finally:
                    os.close(file)
            _sync(folder.fd, DIRECTORY_MODE if public else None)

    def _walk(
        self, path: PurePosixPath = _HERE
    ) -> Iterator[tuple[PurePosixPath, Folder, list[str]]]:
        """Yield the folders below this one, then this one, each with the names of its files.

        os.fwalk is not used because it follows a link before it checks the type.
        """
        others = []
        for name in self.names():
            if self.kind(name) != stat.S_IFDIR:
                others.append(name)
                continue
            try:
                child = self.open_folder(name)
            except OSError as error:
                if error.errno not in MISSING | {errno.EACCES}:
                    raise
                continue  # It was removed or replaced in the meantime, or is not readable.
            with child:
                yield from child._walk(path / name)
        yield path, self, others


def file_digest(folder: Folder, name: str) -> str:
    """Return the BLAKE3 of a regular file."""
    fd = folder.open_file(name)
    try:
        return blake3_of_file(fd)
    finally:
        os.close(fd)


def _sync(fd: int, mode: int | None) -> None:
    if mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
    os.fsync(fd)


def _component(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"not a file name: {name!r}")
    return name
