"""A sweep while loads and removals run on the same volume."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sd_api.reasons import ExitCode, Reason
from sd_loader.store.orphans import Orphan, remove_orphan
from sd_loader.store.ownership import take_ownership
from sd_loader.store.publish import link
from sd_loader.store.staging import begin
from sd_loader.store.volume import Volume
from sd_loader.sweep import FindingKind, sweep
from tests.support.store.sweeping import (
    VERSION,
    WEIGHTS,
    found,
    nobodys_files,
    superseded_unrecorded,
    swept,
)
from tests.support.store.volumes import (
    DAY,
    FILES,
    HASH,
    MODEL_ID,
    NEW_HASH,
    OWNER,
    download,
    load,
    refused,
    remove,
    tree,
)


def test_a_running_pods_folder_is_kept(volume: Volume, tmp_path: Path) -> None:
    """A locked folder stays, even if no Pod has written to it for a long time."""
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with begin(volume, OWNER.uid, "pod", HASH) as staging:
        before = tree(tmp_path)
        assert swept(tmp_path, delete=True).findings == ()
        staging.confirm()
        assert tree(tmp_path) == before
    assert found(tmp_path).keys() == {".staging/uid-1/pod", ".store/uid-1"}


def test_without_locks_the_age_decides(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running Pod writes something every day, so an older folder is an orphan."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with begin(volume, OWNER.uid, "pod", HASH):
        assert found(tmp_path, later=DAY / 2) == {}
        assert found(tmp_path).keys() == {".staging/uid-1/pod", ".store/uid-1"}


def test_an_orphan_that_a_load_begins_to_use_is_kept(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that starts during a sweep continues the download of the last Pod."""
    download(volume, "pod")
    with ExitStack() as stack:
        original = fcntl.flock

        def claimed_first(fd: int, how: int) -> None:
            if how == fcntl.LOCK_EX | fcntl.LOCK_NB:
                monkeypatch.undo()
                stack.enter_context(begin(volume, OWNER.uid, "pod", HASH))
            original(fd, how)

        monkeypatch.setattr(fcntl, "flock", claimed_first)
        (finding,) = swept(tmp_path, delete=True).findings
        assert not finding.removed
    assert (tmp_path / ".staging/uid-1/pod/source/file").read_bytes() == b"part"


@pytest.mark.parametrize("make", [nobodys_files, superseded_unrecorded])
def test_a_version_that_is_published_during_its_removal_is_restored(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Volume], None]
) -> None:
    """A version with a link is never removed, even if the link is created at the last moment."""
    make(volume)
    original = os.rename

    def published_first(old: str, new: str, **fds: int) -> None:
        if old in {"uid-1", HASH}:
            monkeypatch.undo()
            (tmp_path / MODEL_ID).unlink(missing_ok=True)
            volume.root.make_link(MODEL_ID, VERSION)
        original(old, new, **fds)

    monkeypatch.setattr(os, "rename", published_first)
    (finding,) = (one for one in swept(tmp_path, delete=True).findings if one.path in VERSION)
    assert not finding.removed
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()


@pytest.mark.parametrize("make", [nobodys_files, superseded_unrecorded])
def test_a_load_does_not_publish_a_version_that_a_sweep_removed(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Volume], None]
) -> None:
    """The load fails and is tried again. Until then, readers get the previous version."""
    make(volume)
    before = volume.root.link_target(MODEL_ID)
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    operation = "rename" if volume.root.kind(MODEL_ID) else "symlink"
    original = getattr(os, operation)

    def taken_first(*args: str, **fds: int) -> None:
        if args[-1] == MODEL_ID:
            monkeypatch.undo()
            assert remove_orphan(volume, Orphan(VERSION, "judged a moment ago", MODEL_ID))
        original(*args, **fds)

    monkeypatch.setattr(os, operation, taken_first)
    with refused(
        Reason.LOADER_CRASHED, "m was removed from the volume while it was being published"
    ):
        link(volume, OWNER, MODEL_ID, HASH)
    assert volume.root.link_target(MODEL_ID) == before
    assert before is None or FILES.items() <= tree(tmp_path / MODEL_ID).items()


def has_folder(volume: Volume, place: str) -> bool:
    """Return whether the model has this folder."""
    return (volume.root.path / place / OWNER.uid).is_dir()


def emptied_before(
    monkeypatch: pytest.MonkeyPatch, volume: Volume, operation: str, name: str
) -> list[str]:
    """Remove the model's empty folders just before `operation` creates a name like `name`.

    This simulates a sweep that has just removed the last entry. Return a list that then has the
    removed folders.
    """
    original = getattr(os, operation)
    gone: list[str] = []

    def removed_first(*args: Any, **fds: Any) -> Any:
        if any(str(arg).startswith(name) for arg in args):
            monkeypatch.undo()
            places = [place for place in (".store", ".staging") if has_folder(volume, place)]
            volume.remove_if_empty(OWNER.uid)
            gone.extend(place for place in places if not has_folder(volume, place))
        return original(*args, **fds)

    monkeypatch.setattr(os, operation, removed_first)
    return gone


@pytest.mark.parametrize(
    ("operation", "name", "place"), [("open", ".new-", ".store"), ("mkdir", "pod", ".staging")]
)
def test_a_load_continues_if_its_empty_folder_is_removed(
    volume: Volume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    name: str,
    place: str,
) -> None:
    """The folder is created again."""
    gone = emptied_before(monkeypatch, volume, operation, name)
    load(volume)
    assert gone == [place]
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()


def test_a_link_is_replaced_even_if_the_empty_staging_folder_is_removed(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load publishes a version that is already on the volume, so nothing is staged."""
    load(volume)
    load(volume, load_hash=NEW_HASH)
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    gone = emptied_before(monkeypatch, volume, "symlink", ".link-")
    link(volume, OWNER, MODEL_ID, HASH)
    assert gone == [".staging"]
    assert volume.root.link_target(MODEL_ID) == VERSION
    assert FILES.items() <= tree(tmp_path / MODEL_ID).items()


def test_a_sweep_does_not_damage_concurrent_loads_and_removals(tmp_path: Path) -> None:
    """With a minimum age of zero, only the order of steps and the locks protect running loads."""
    failures: list[BaseException] = []
    done = threading.Event()

    def come_and_go() -> None:
        try:
            with Volume.open(tmp_path) as volume:
                for number in range(15):
                    load(volume, load_hash=f"{number % 3:016x}", files=WEIGHTS)
                    assert WEIGHTS.items() <= tree(tmp_path / MODEL_ID).items()
                    if number % 4 == 3:
                        remove(volume, OWNER, MODEL_ID)
                remove(volume, OWNER, MODEL_ID)
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    while not done.is_set():
        result = sweep(tmp_path, delete=True, digests=True, older_than=DAY, retain=timedelta(0))
        assert result.exit_code is ExitCode.DONE, result.to_text()
        assert {one.kind for one in result.findings} <= {FindingKind.ORPHAN}, result.to_text()
    thread.join()
    if failures:  # raised again, for its traceback
        raise failures[0]
    sweep(tmp_path, delete=True, older_than=timedelta(0), retain=timedelta(0))
    assert tree(tmp_path) == {}
