"""An open folder: every operation is relative to its descriptor and follows no links.

Whoever can write to the volume can plant links on it. A name is therefore one path component,
opened beneath a folder that is already open; a path that was checked once cannot change its
meaning later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, TypeVar
from uuid import uuid4

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
NO_HARD_LINKS = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
"""How `link` fails where the volume, or this one file, has no more hard links to give."""

_HERE = PurePosixPath()
_NEW = "new"
_ATTEMPTS = 5

T = TypeVar("T")


def insist(action: Callable[[], T]) -> T:
    """Do it anew where another Pod has just removed what it was done to."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError):
            return action()
    return action()


def temporary_name(kind: str) -> str:
    """A fresh hidden name; Pods' names never start with a dot."""
    return f".{kind}-{uuid4().hex[:12]}"


class Folder:
    """A folder held open. Use it in a `with` statement."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open_root(cls, path: Path) -> Folder:
        """Open the volume itself; the one path that is followed as the caller wrote it."""
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
        """A path for code that works with paths; it leads here even when this folder is moved."""
        return Path(f"/proc/self/fd/{self.fd}")

    def open_folder(self, *names: str) -> Folder:
        """Open a folder beneath this one; a link or file on the way is an error."""
        fd = os.dup(self.fd)
        for name in names:
            try:
                child = os.open(_component(name), _OPEN_FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = child
        return Folder(fd)

    def make_folder(self, name: str) -> Folder:
        """Open a folder, made when missing."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_component(name), DIRECTORY_MODE, dir_fd=self.fd)
        return self.open_folder(name)

    def make_folders(self, *names: str) -> Folder:
        """Open a folder beneath this one, made with its parents when missing."""
        folder = self.open_folder()
        for name in names:
            with folder as parent:
                folder = parent.make_folder(name)
        return folder

    def names(self) -> list[str]:
        """The names in this folder, sorted."""
        return sorted(os.listdir(self.fd))  # noqa: PTH208 - pathlib takes no descriptor

    def kind(self, name: str) -> int | None:
        """The file type of an entry as in `stat.S_IFMT`; None where there is none."""
        status = self.status(name)
        return None if status is None else stat.S_IFMT(status.st_mode)

    def status(self, name: str) -> os.stat_result | None:
        """The status of an entry itself; None where there is none."""
        try:
            return os.stat(_component(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def file_size(self, path: str) -> int | None:
        """Size of a regular file beneath; None where there is none."""
        *folders, name = path.split("/")
        try:
            with self.open_folder(*folders) as parent:
                status = os.stat(_component(name), dir_fd=parent.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def is_same(self, name: str, other: Folder) -> bool:
        """Whether the entry is that open folder."""
        status = self.status(name)
        return status is not None and os.path.samestat(status, os.fstat(other.fd))

    def open_file(self, name: str) -> int:
        """Open a regular file for reading; anything else is an error."""
        try:
            fd = os.open(_component(name), _OPEN_FILE, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileNotFoundError(f"{name} is a link") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(f"{name} is no regular file")
        return fd

    def read(self, name: str, limit: int) -> bytes:
        """Content of a small file; one above the limit is an error."""
        with os.fdopen(self.open_file(name), "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"{name} is larger than {limit} bytes")
        return content

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing; one that exists is an error."""
        return os.fdopen(os.open(_component(name), _NEW_FILE, FILE_MODE, dir_fd=self.fd), "wb")

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole, durably."""
        # Another Pod may take the new file for what an interrupted call has left.
        insist(lambda: self._replace(name, content))
        self.sync()

    def _replace(self, name: str, content: bytes) -> None:
        temporary = temporary_name(_NEW)
        with self.create(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.move(temporary, self, name)

    def remove_unfinished(self) -> None:
        """Remove what interrupted calls of `write` have left."""
        for name in self.names():
            if name.startswith(f".{_NEW}-"):
                self.unlink(name)

    def move(self, name: str, target: Folder, new_name: str) -> None:
        """Rename an entry into another folder of the volume; atomic."""
        os.rename(_component(name), _component(new_name), src_dir_fd=self.fd, dst_dir_fd=target.fd)

    def link(self, name: str, target: Folder, new_name: str) -> None:
        """Give an entry one more name by a hard link; a link is linked to, not followed."""
        os.link(
            _component(name),
            _component(new_name),
            src_dir_fd=self.fd,
            dst_dir_fd=target.fd,
            follow_symlinks=False,
        )

    def link_target(self, name: str) -> str | None:
        """Where a symbolic link points; None where the entry is missing or no link."""
        try:
            return os.readlink(_component(name), dir_fd=self.fd)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL}:
                return None
            raise

    def make_link(self, name: str, target: str) -> None:
        """Make a symbolic link; one that exists is an error."""
        os.symlink(target, _component(name), dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file or link; a missing one is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_component(name), dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove an entry with all that is in it; a link is removed, not followed."""
        for attempt in range(_ATTEMPTS):
            if self.kind(name) != stat.S_IFDIR:
                self.unlink(name)
                return
            try:
                shutil.rmtree(_component(name), dir_fd=self.fd)
            except FileNotFoundError:
                continue  # someone else removes it too
            except OSError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def discard(self, name: str) -> None:
        """Take an entry out of sight in one step, then remove it.

        Also removes what an interrupted call has left; needs no space on a full volume.
        """
        trash = f".trash-{_component(name)}"
        self.remove(trash)
        with contextlib.suppress(FileNotFoundError):
            self.move(name, self, trash)
            self.remove(trash)

    def remove_if_empty(self, name: str) -> None:
        """Remove a folder with nothing in it; leave any other."""
        with contextlib.suppress(OSError):
            os.rmdir(_component(name), dir_fd=self.fd)

    def sync(self) -> None:
        """Make renames in this folder durable."""
        os.fsync(self.fd)

    def files(self) -> list[str]:
        """Paths of everything beneath that is no folder, sorted."""
        return sorted(str(path / name) for path, _, names in self._walk() for name in names)

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Path and status of everything beneath that is no folder."""
        for path, folder, names in self._walk():
            for name in names:
                status = folder.status(name)
                if status is not None:
                    yield str(path / name), status

    def sync_tree(self, *, public: bool = False) -> None:
        """Make all beneath durable, and readable by all if `public`.

        Links and devices are an error.
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
        """The folders beneath and then this one, each with the names in it that are no folders.

        Not by os.fwalk, which opens what a link leads to before it looks at it.
        """
        others = []
        for name in self.names():
            if self.kind(name) != stat.S_IFDIR:
                others.append(name)
                continue
            try:
                child = self.open_folder(name)
            except OSError as error:
                if error.errno not in _MISSING | {errno.EACCES}:
                    raise
                continue  # removed or replaced meanwhile, or not for us to see
            with child:
                yield from child._walk(path / name)
        yield path, self, others


def file_digest(folder: Folder, name: str) -> str:
    """sha256 of a regular file."""
    with os.fdopen(folder.open_file(name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(fd: int, mode: int | None) -> None:
    if mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
    os.fsync(fd)


def _component(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"not a file name: {name!r}")
    return name
