"""The staging of one model: a folder per Pod, locked while that Pod works in it.

Where a node is lost, two Pods of one model may be alive. A Pod takes over a folder by renaming it,
and only one that nobody holds a lock on; on a file system without locks the rename alone decides,
and the Pod that lost its folder fails on the next thing it does there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sd_api.loader_env import LoaderEnv
from sd_api.names import STAGING_DIR
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.store.folder import FILE_MODE, Folder
from sd_loader.store.volume import Volume

SOURCE = "source"
OUT = "out"

_LOCK = "lock"
_HASH = "load-hash"
_FETCHED = "source.json"
_LIMIT = 16 << 20
_CLAIM_ATTEMPTS = 5
_POD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_OPEN_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


@dataclass(frozen=True)
class Staging:
    """A Pod's own folder, while it holds the lock."""

    pods: Folder
    name: str
    folder: Folder

    def source(self) -> Folder:
        """Where the source is downloaded to; may hold a part of it."""
        return self.folder.make_folder(SOURCE)

    def out(self) -> Folder:
        """The folder for what is converted, with what an earlier attempt left in it."""
        return self.folder.make_folder(OUT)

    def fresh_out(self) -> Folder:
        """An empty folder for what is converted."""
        self.drop_out()
        return self.out()

    def drop_out(self) -> None:
        """Remove what was converted."""
        self.folder.remove(OUT)

    def discard(self) -> None:
        """Remove all of it."""
        self.pods.discard(self.name)

    def confirm(self) -> None:
        """Fail if another Pod has taken this folder over."""
        if not self.pods.is_same(self.name, self.folder):
            raise LoaderError(
                Reason.LOADER_CRASHED,
                f"the staging folder of {self.name} is gone: another Pod of this load took it over,"
                " or the model was removed",
            )

    def clear(self) -> None:
        """Remove everything but the lock."""
        for name in self.folder.names():
            if name != _LOCK:
                self.folder.remove(name)

    def is_ours(self) -> bool:
        """Whether all in it is of a loader's making: folders where it keeps some, and no links.

        Whoever downloads and converts works with paths beneath, and would follow a planted link.
        """
        folders = {self.folder.kind(name) for name in (SOURCE, OUT)}
        return folders <= {None, stat.S_IFDIR} and all(
            stat.S_ISREG(status.st_mode) for _, status in self.folder.entries()
        )

    def load_hash(self) -> str | None:
        """Which load this was downloaded for."""
        return self._read(_HASH)

    def fetched(self) -> str | None:
        """What the finished download was recorded as; None while it is not finished."""
        return self._read(_FETCHED)

    def set_fetched(self, text: str) -> None:
        """Record that the download is finished, once it is durable."""
        with self.source() as source, self.out() as out:
            source.sync_tree()
            out.sync_tree()
        self.folder.write(_FETCHED, text.encode())

    def _read(self, name: str) -> str | None:
        try:
            return self.folder.read(name, _LIMIT).decode()
        except FileNotFoundError:
            return None


@contextmanager
def claim(volume: Volume, uid: str, pod: str, load_hash: str) -> Iterator[Staging]:
    """The Pod's folder, with whatever an earlier Pod downloaded for the same load.

    Everything else that no living Pod holds is removed.
    """
    for _ in range(_CLAIM_ATTEMPTS):
        with volume.make(STAGING_DIR, uid) as pods:
            _claim_abandoned(pods, _valid(pod), load_hash)
            try:
                pods.make_folder(pod).close()
            except FileNotFoundError:
                continue  # a sweep has removed what was still empty
            with _locked(pods, pod) as staging:
                if staging is None:
                    continue
                if staging.load_hash() != load_hash or not staging.is_ours():
                    staging.clear()
                    staging.folder.write(_HASH, load_hash.encode())
                remove_abandoned(volume, uid, keep=pod)
                yield staging
                return
    raise LoaderError(
        Reason.LOADER_CRASHED, f"another process works in the staging folder of {pod}"
    )


@contextmanager
def resume(volume: Volume, uid: str, pod: str, load_hash: str) -> Iterator[Staging]:
    """The Pod's folder as its fetch left it."""
    pods = volume.find(STAGING_DIR, uid)
    if pods is not None:
        with pods, _locked(pods, _valid(pod)) as staging:
            if staging is not None and staging.load_hash() == load_hash and staging.is_ours():
                yield staging
                return
    raise LoaderError(
        Reason.LOADER_CRASHED,
        f"nothing is downloaded in the staging folder of {pod}; run fetch first (another Pod of"
        " this load may have taken it over)",
    )


def remove_abandoned(volume: Volume, uid: str, keep: str | None = None) -> None:
    """Remove what no living Pod holds, and keep this one."""
    pods = volume.find(STAGING_DIR, uid)
    if pods is None:
        return
    with pods:
        for name in pods.names():
            if name == keep:
                continue
            if pods.kind(name) != stat.S_IFDIR or not _POD.fullmatch(name):
                pods.remove(name)
            else:
                remove_if_abandoned(pods, name)


def remove_if_abandoned(pods: Folder, name: str) -> None:
    """Remove a Pod's folder, unless a living Pod holds it."""
    with _locked(pods, name) as staging:
        if staging is not None:
            pods.discard(name)


def is_held(pods: Folder, name: str) -> bool:
    """Whether a living Pod holds this folder; changes nothing, not even its time."""
    try:
        with pods.open_folder(name) as folder:
            lock = folder.open_file(_LOCK)
    except OSError as error:
        if error.errno not in _GONE and not isinstance(error, FileNotFoundError):
            raise
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(lock)
    return False


def _claim_abandoned(pods: Folder, pod: str, load_hash: str) -> None:
    """Make one abandoned download of this load our own; ours goes first."""
    candidates = [name for name in pods.names() if _POD.fullmatch(name)]
    for name in sorted(candidates, key=lambda name: name != pod):
        with _locked(pods, name) as staging:
            if staging is None or staging.load_hash() != load_hash:
                continue
            if name == pod:
                return
            with contextlib.suppress(FileNotFoundError):
                pods.discard(pod)
                pods.move(name, pods, pod)
                return


@contextmanager
def _locked(pods: Folder, name: str) -> Iterator[Staging | None]:
    """A Pod's folder with its lock held; None where it is gone or another process holds it."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(pods.open_folder(name))
            lock = _open_lock(folder)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            yield None
            return
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield Staging(pods, name, folder) if pods.is_same(name, folder) else None


def _open_lock(folder: Folder) -> int:
    try:
        return os.open(_LOCK, _OPEN_LOCK, FILE_MODE, dir_fd=folder.fd)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
    folder.remove(_LOCK)  # no Pod can hold what is no file
    return os.open(_LOCK, _OPEN_LOCK, FILE_MODE, dir_fd=folder.fd)


def _valid(pod: str) -> str:
    if not _POD.fullmatch(pod):
        variable = LoaderEnv.name_of("pod")
        raise LoaderError(
            Reason.LOADER_CRASHED, f"{variable} is not the name of a Pod: {pod[:80]!r}"
        )
    return pod
