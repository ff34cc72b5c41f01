"""What a sweep finds on a volume, what it removes, and what it lets be."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sweeping import OTHER_OWNER, VERSION, WEIGHTS, found, swept
from volumes import (
    DAY,
    FILES,
    HASH,
    MODEL_ID,
    NAMESAKE,
    NEW_HASH,
    OWNER,
    download,
    load,
    load_untidily,
    refused,
    tree,
)

from sd_api.reasons import ExitCode, Reason
from sd_loader.store import removal
from sd_loader.store.blobs import SHARED_FROM
from sd_loader.store.orphans import Orphan, remove
from sd_loader.store.ownership import take_ownership
from sd_loader.store.publish import link, tidy
from sd_loader.store.staging import claim
from sd_loader.store.volume import Volume
from sd_loader.sweep import sweep


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """An empty volume."""
    with Volume.open(tmp_path) as opened:
        yield opened


# --- orphans


def interrupted_download(volume: Volume) -> None:
    """A Pod that died, of a load that nobody goes on with."""
    load(volume)
    download(volume, "pod", NEW_HASH)


def interrupted_removal(volume: Volume) -> None:
    """Trash, in both places."""
    load(volume)
    with volume.make(".store", ".trash-uid-7") as folder:
        folder.write("owner.json", b"{}")
    volume.make(".store", "uid-1", f".trash-{NEW_HASH}").close()
    volume.make(".staging", ".trash-uid-7").close()


def nobodys_files(volume: Volume) -> None:
    """A model whose link was removed, and one whose owner was never written down."""
    load(volume)
    volume.root.unlink(MODEL_ID)
    volume.make(".store", "uid-7").close()


def superseded(volume: Volume) -> None:
    """A version that its readers had a day to leave."""
    load(volume)
    load(volume, load_hash=NEW_HASH)


def superseded_unrecorded(volume: Volume) -> None:
    """A version whose successor's Pod died before it was written down."""
    load(volume)
    load_untidily(volume, OWNER, NEW_HASH, MODEL_ID)


def taken_over(volume: Volume) -> None:
    """A former self whose namesake died before it removed it."""
    load(volume)
    load_untidily(volume, NAMESAKE, HASH, MODEL_ID)


def no_receipt(volume: Volume) -> None:
    """Half a version that no load has made."""
    load(volume)
    volume.make(".store", "uid-1", "f" * 16).close()


def dangling(volume: Volume) -> None:
    """A link whose version somebody removed by hand."""
    load(volume, OTHER_OWNER, model_id="other")
    volume.root.make_link(MODEL_ID, VERSION)


def leftovers(volume: Volume) -> None:
    """Names that writes, links and probes leave when they are killed."""
    load(volume)
    with volume.make(".store", "uid-1") as folder, folder.create(".new-abc"):
        pass
    with volume.make(".staging", "uid-1") as pods:
        pods.make_link(".link-abc", "x")
        pods.make_folder(".probe-abc").close()
    volume.make(".staging", "uid-8").close()


ORPHANED = [
    (interrupted_download, {".staging/uid-1/pod": "no Pod has worked here since"}),
    (
        interrupted_removal,
        {
            ".store/.trash-uid-7": "interrupted",
            f".store/uid-1/.trash-{NEW_HASH}": "interrupted",
            ".staging/.trash-uid-7": "interrupted",
        },
    ),
    (
        nobodys_files,
        {".store/uid-1": "no link leads here", ".store/uid-7": "no readable owner.json"},
    ),
    (superseded, {VERSION: "superseded since 2026-01-01 00:00 UTC"}),
    (superseded_unrecorded, {VERSION: "superseded since", ".staging/uid-1": "empty"}),
    (taken_over, {".store/uid-1": "no link leads here", ".staging/uid-2": "empty"}),
    (no_receipt, {f".store/uid-1/{'f' * 16}": "no readable receipt"}),
    (dangling, {MODEL_ID: "leads nowhere"}),
    (
        leftovers,
        {
            ".store/uid-1/.new-abc": "interrupted",
            ".staging/uid-1/.link-abc": "no Pod",
            ".staging/uid-1/.probe-abc": "no Pod",
            ".staging/uid-8": "empty",
        },
    ),
]


@pytest.mark.parametrize(
    ("make", "expected"), ORPHANED, ids=[make.__name__ for make, _ in ORPHANED]
)
def test_orphans_are_listed_and_with_delete_removed(
    volume: Volume, tmp_path: Path, make: Callable[[Volume], None], expected: dict[str, str]
) -> None:
    """Listing changes nothing; what is published stays; a second sweep finds nothing."""
    make(volume)
    before = tree(tmp_path)
    listed = found(tmp_path)
    assert tree(tmp_path) == before
    assert listed.keys() == expected.keys()
    assert all(why in listed[path] for path, why in expected.items())

    result = swept(tmp_path, delete=True)
    assert {one.path for one in result.findings if one.removed} == expected.keys()
    assert result.exit_code is ExitCode.DONE
    kept = {path for path in before if not path.startswith(tuple(expected))}
    assert tree(tmp_path).keys() <= kept
    for path in (MODEL_ID, "other"):
        if (tmp_path / path).exists():
            assert FILES.items() <= tree(tmp_path / path).items()
    assert swept(tmp_path).findings == ()


@pytest.mark.parametrize("make", [make for make, _ in ORPHANED])
def test_what_is_recent_may_be_a_living_pods(
    volume: Volume, tmp_path: Path, make: Callable[[Volume], None]
) -> None:
    """Only trash, links to nothing, and what was recorded as superseded need no day to pass."""
    make(volume)
    at_once = ("/.trash-", MODEL_ID, VERSION) if make in {superseded, dangling} else ("/.trash-",)
    for path in found(tmp_path, later=timedelta(0)):
        assert any(word in path for word in at_once), path


def test_a_volume_in_order_needs_nothing(volume: Volume, tmp_path: Path) -> None:
    """Published, previous and released (Retain) versions, and shared files, are no orphans."""
    load(volume, files=WEIGHTS)
    load(volume, load_hash=NEW_HASH, files=WEIGHTS)
    tidy(volume, OWNER, NEW_HASH, DAY, datetime.now(UTC) + 2 * DAY)
    load(volume, OTHER_OWNER, model_id="other", files=WEIGHTS)
    removal.release(volume, OTHER_OWNER)
    before = tree(tmp_path)
    result = swept(tmp_path, delete=True, digests=True)
    assert result.findings == ()
    assert result.to_text() == "Nothing to do."
    assert tree(tmp_path) == before


def test_a_released_version_is_kept_even_without_its_link(volume: Volume, tmp_path: Path) -> None:
    """Somebody asked for it to be retained."""
    load(volume)
    removal.release(volume, OWNER)
    volume.root.unlink(MODEL_ID)
    assert swept(tmp_path).findings == ()


@pytest.mark.parametrize("make", [superseded, superseded_unrecorded])
def test_a_previous_version_is_kept_as_long_as_its_readers_were_promised(
    volume: Volume, tmp_path: Path, make: Callable[[Volume], None]
) -> None:
    """Whether or not anybody has written down since when it is one."""
    make(volume)
    sweep(
        tmp_path,
        older_than=timedelta(0),
        retain=timedelta(days=100_000),
        now=datetime.now(UTC) + DAY,
        delete=True,
    )
    assert FILES.items() <= tree(tmp_path / VERSION).items()


def test_unused_blobs_go(volume: Volume, tmp_path: Path) -> None:
    """Those that were left, and those of the versions that the sweep removes."""
    load(volume, files=WEIGHTS)
    load(volume, load_hash=NEW_HASH, files={**FILES, "unet/weights": b"u" * SHARED_FROM})
    assert len(list((tmp_path / ".blobs").rglob("*/*/*"))) == 2
    (path, why) = next(iter(found(tmp_path).items()))
    assert (path, why[:10]) == (VERSION, "superseded")
    swept(tmp_path, delete=True)
    assert len(list((tmp_path / ".blobs").rglob("*/*/*"))) == 1

    shutil.rmtree(tmp_path / ".store")
    blob = next((tmp_path / ".blobs").rglob("*/*/*"))
    assert found(tmp_path, later=timedelta(0)) == {
        str(blob.relative_to(tmp_path)): "no model holds this file",
        MODEL_ID: "the link leads nowhere",
    }
    swept(tmp_path, delete=True)
    assert tree(tmp_path) == {}


def test_sizes_are_what_the_disk_gets_back(volume: Volume, tmp_path: Path) -> None:
    """What another model shares is not freed with an orphan, and so is not counted."""
    load(volume, files={**WEIGHTS, "unet/weights": b"u" * SHARED_FROM})
    load(volume, OTHER_OWNER, model_id="other", files=WEIGHTS)
    volume.root.unlink(MODEL_ID)
    (finding,) = swept(tmp_path).findings
    before = on_disk(tmp_path)
    (removed,) = swept(tmp_path, delete=True).findings
    assert removed.size == finding.size
    assert SHARED_FROM < finding.size < SHARED_FROM + 10_000
    assert 0 <= before - on_disk(tmp_path) - finding.size < 64 << 10


def on_disk(root: Path) -> int:
    """Bytes of all files of the volume, as `du` counts them."""
    files = {path.stat().st_ino: path.stat() for path in root.rglob("*") if path.is_file()}
    return sum(status.st_blocks * 512 for status in files.values())


# --- beside living loads


def test_a_living_pods_folder_is_left_alone(volume: Volume, tmp_path: Path) -> None:
    """However long ago it wrote something, while it holds its lock."""
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with claim(volume, OWNER.uid, "pod", HASH) as staging:
        before = tree(tmp_path)
        assert swept(tmp_path, delete=True).findings == ()
        staging.confirm()
        assert tree(tmp_path) == before
    assert found(tmp_path).keys() == {".staging/uid-1/pod", ".store/uid-1"}


def test_without_locks_time_decides(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Pod of ours lives for a day without writing a byte."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with claim(volume, OWNER.uid, "pod", HASH):
        assert found(tmp_path, later=DAY / 2) == {}
        assert found(tmp_path).keys() == {".staging/uid-1/pod", ".store/uid-1"}


def test_what_became_somebodys_between_two_looks_stays(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that begins in the middle of a sweep goes on where the last Pod stopped."""
    download(volume, "pod")
    with ExitStack() as stack:
        original = fcntl.flock

        def claimed_first(fd: int, how: int) -> None:
            if how == fcntl.LOCK_EX | fcntl.LOCK_NB:
                monkeypatch.undo()
                stack.enter_context(claim(volume, OWNER.uid, "pod", HASH))
            original(fd, how)

        monkeypatch.setattr(fcntl, "flock", claimed_first)
        (finding,) = swept(tmp_path, delete=True).findings
        assert not finding.removed
    assert (tmp_path / ".staging/uid-1/pod/source/file").read_bytes() == b"part"


@pytest.mark.parametrize("make", [nobodys_files, superseded_unrecorded])
def test_what_is_published_again_at_the_very_moment_is_put_back(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Volume], None]
) -> None:
    """The link wins, however late it is set."""
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
def test_a_load_does_not_publish_what_a_sweep_has_just_taken(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Volume], None]
) -> None:
    """It fails, is run again, and readers get meanwhile what they got before."""
    make(volume)
    before = volume.root.link_target(MODEL_ID)
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    operation = "rename" if volume.root.kind(MODEL_ID) else "symlink"
    original = getattr(os, operation)

    def taken_first(*args: str, **fds: int) -> None:
        if args[-1] == MODEL_ID:
            monkeypatch.undo()
            assert remove(volume, Orphan(VERSION, "judged a moment ago", MODEL_ID))
        original(*args, **fds)

    monkeypatch.setattr(os, operation, taken_first)
    with refused(Reason.LOADER_CRASHED, "m was removed from the volume while it was published"):
        link(volume, OWNER, MODEL_ID, HASH)
    assert volume.root.link_target(MODEL_ID) == before
    assert before is None or FILES.items() <= tree(tmp_path / MODEL_ID).items()


def test_a_sweep_beside_loads_and_removals_harms_none(tmp_path: Path) -> None:
    """With no time to be old in, only order and locks protect what is at work."""
    failures: list[BaseException] = []
    done = threading.Event()

    def come_and_go() -> None:
        try:
            with Volume.open(tmp_path) as volume:
                for number in range(15):
                    load(volume, load_hash=f"{number % 3:016x}", files=WEIGHTS)
                    assert WEIGHTS.items() <= tree(tmp_path / MODEL_ID).items()
                    if number % 4 == 3:
                        removal.remove(volume, OWNER, MODEL_ID)
                removal.remove(volume, OWNER, MODEL_ID)
        except BaseException as error:  # noqa: BLE001 - told below, in the test's own thread
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    while not done.is_set():
        result = sweep(tmp_path, delete=True, digests=True, older_than=DAY, retain=timedelta(0))
        assert result.exit_code is ExitCode.DONE, result.to_text()
    thread.join()
    if failures:  # raised again, for its traceback
        raise failures[0]
    sweep(tmp_path, delete=True, older_than=timedelta(0), retain=timedelta(0))
    assert tree(tmp_path) == {}
