"""The staging folders of one model: one per Pod, locked while that Pod uses it.

If a node is lost, two Pods of one model may run at once. A Pod takes over the folder of another Pod
by renaming it, if the folder is not locked. On a file system without locks, only the rename
protects: the Pod that lost its folder fails at its next operation there.
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
_LOCK_ATTEMPTS = 5
_POD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_OPEN_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


@dataclass(frozen=True)
class Staging:
    """A Pod's staging folder, which this process has locked.

    pods: the model's folder of staging folders. name: the Pod's name. folder: the staging folder.
    """

    pods: Folder
    name: str
    folder: Folder

    def source(self) -> Folder:
        """Open the folder for the download. It may contain a partial download."""
        return self.folder.make_folder(SOURCE)

    def out(self) -> Folder:
        """Open the folder for converted files. It may contain files of an earlier attempt."""
        return self.folder.make_folder(OUT)

    def fresh_out(self) -> Folder:
        """Open the folder for converted files, emptied."""
        self.drop_out()
        return self.out()

    def drop_out(self) -> None:
        """Remove the converted files."""
        self.folder.remove(OUT)

    def discard(self) -> None:
        """Remove the staging folder."""
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
        """Whether the folder contains only regular files and the loader's own folders.

        The code that downloads and converts uses paths and would follow a planted link.
        """
        folders = {self.folder.kind(name) for name in (SOURCE, OUT)}
        return folders <= {None, stat.S_IFDIR} and all(
            stat.S_ISREG(status.st_mode) for _, status in self.folder.entries()
        )

    def load_hash(self) -> str | None:
        """Return the hash of the load that this download belongs to. None if none is recorded."""
        return self._read(_HASH)

    def fetched(self) -> str | None:
        """Return the record of the finished download. None if the download is not finished."""
        return self._read(_FETCHED)

    def set_fetched(self, text: str) -> None:
        """Make the download durable, then record that it is finished."""
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
def begin(volume: Volume, uid: str, pod: str, load_hash: str) -> Iterator[Staging]:
    """Lock the Pod's staging folder. Take over an earlier Pod's download of the same load.

    Remove all other staging folders of this model that no running Pod has locked.
    """
    for _ in range(_LOCK_ATTEMPTS):
        with volume.make(STAGING_DIR, uid) as pods:
            _take_over_abandoned(pods, _valid(pod), load_hash)
            try:
                pods.make_folder(pod).close()
            except FileNotFoundError:
                continue  # A sweep removed the folder, which was still empty.
            with _locked(pods, pod) as staging:
                if staging is None:
                    continue
                if staging.load_hash() != load_hash or not staging.is_ours():
                    staging.clear()
                    staging.folder.write(_HASH, load_hash.encode())
                remove_abandoned(volume, uid, keep=pod)
                yield staging
                return
    raise LoaderError(Reason.LOADER_CRASHED, f"another process uses the staging folder of {pod}")


@contextmanager
def resume(volume: Volume, uid: str, pod: str, load_hash: str) -> Iterator[Staging]:
    """Lock the Pod's staging folder. Fail if `fetch` left no download of this load there."""
    pods = volume.find(STAGING_DIR, uid)
    if pods is not None:
        with pods, _locked(pods, _valid(pod)) as staging:
            if staging is not None and staging.load_hash() == load_hash and staging.is_ours():
                yield staging
                return
    raise LoaderError(
        Reason.LOADER_CRASHED,
        f"the staging folder of {pod} has no download of this load; run fetch first (another Pod"
        " may have taken the folder over)",
    )


def remove_abandoned(volume: Volume, uid: str, keep: str | None = None) -> None:
    """Remove a model's staging folders that no running Pod has locked, except the folder `keep`."""
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
    """Remove a Pod's staging folder, unless a running Pod has locked it."""
    with _locked(pods, name) as staging:
        if staging is not None:
            pods.discard(name)


def is_held(pods: Folder, name: str) -> bool:
    """Whether a running Pod has locked this folder. Does not change its modification time."""
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


def _take_over_abandoned(pods: Folder, pod: str, load_hash: str) -> None:
    """Take over one abandoned download of this load. Prefer this Pod's own folder."""
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
    """Lock a Pod's folder. Yield None if it does not exist or another process has locked it."""
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
    folder.remove(_LOCK)  # It is not a file, so no Pod can have locked it.
    return os.open(_LOCK, _OPEN_LOCK, FILE_MODE, dir_fd=folder.fd)


def _valid(pod: str) -> str:
    if not _POD.fullmatch(pod):
        variable = LoaderEnv.name_of("pod")
        raise LoaderError(
            Reason.LOADER_CRASHED, f"{variable} is not a valid Pod name: {pod[:80]!r}"
        )
    return pod
