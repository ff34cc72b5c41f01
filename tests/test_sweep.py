"""What a sweep finds on a volume, what it removes, and what it lets be."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loadercli import Containers, failed
from volumes import (
    DAY,
    FILES,
    HASH,
    MODEL_ID,
    NAMESAKE,
    NEW_HASH,
    OWNER,
    STRANGER,
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
from sd_loader.store.receipt import RECEIPT_FILE
from sd_loader.store.staging import claim
from sd_loader.store.volume import Volume
from sd_loader.sweep import Kind, Swept, sweep

WEIGHTS = {**FILES, "vae/weights": b"w" * SHARED_FROM}
OTHER_OWNER = STRANGER.model_copy(update={"name": "other"})
VERSION = f".store/uid-1/{HASH}"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """An empty volume."""
    with Volume.open(tmp_path) as opened:
        yield opened


def swept(root: Path, later: timedelta = 2 * DAY, **options: Any) -> Swept:
    """A sweep some time after what the test has done; what is older than a day is nobody's."""
    now = datetime.now(UTC) + later
    return sweep(root, older_than=DAY, retain=DAY, now=now, **options)


def found(root: Path, kind: Kind = Kind.ORPHAN, **options: Any) -> dict[str, str]:
    """The paths of a kind, and why they were found."""
    return {one.path: one.why for one in swept(root, **options).findings if one.kind is kind}


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
    """It fails, leaves no link to nothing, and is run again."""
    make(volume)
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
    assert not (tmp_path / MODEL_ID).is_symlink()


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
    assert failures == []
    sweep(tmp_path, delete=True, older_than=timedelta(0), retain=timedelta(0))
    assert tree(tmp_path) == {}


# --- altered and foreign files


def shortened(version: Path) -> str:
    """A file that was cut."""
    os.truncate(version / "vae/weights", 5)
    return "vae/weights"


def missing(version: Path) -> str:
    """A file that is gone."""
    (version / "unet/config.json").unlink()
    return "unet/config.json"


def made_a_link(version: Path) -> str:
    """A link in a file's place."""
    (version / "unet/config.json").unlink()
    (version / "unet/config.json").symlink_to("/etc/passwd")
    return "unet/config.json"


def added(version: Path) -> str:
    """A file more."""
    (version / "more.py").write_text("print()")
    return "more.py"


def added_link(version: Path) -> str:
    """A link to a folder."""
    (version / "more").symlink_to("/etc")
    return "more"


def without_receipt(version: Path) -> str:
    """A published folder whose receipt is gone."""
    (version / RECEIPT_FILE).unlink()
    return RECEIPT_FILE


def without_owner(version: Path) -> str:
    """A published folder whose owner cannot be read."""
    (version.parent / "owner.json").write_text("{")
    return "../owner.json"


@pytest.mark.parametrize(
    "alter",
    [shortened, missing, made_a_link, added, added_link, without_receipt, without_owner],
)
def test_altered_files_are_told_and_never_removed(
    volume: Volume, tmp_path: Path, alter: Callable[[Path], str]
) -> None:
    """A person must judge them; the exit code says so."""
    load(volume, files=WEIGHTS)
    path = os.path.normpath(f"{VERSION}/{alter(tmp_path / VERSION)}")
    before = tree(tmp_path)
    result = swept(tmp_path, delete=True)
    assert [(one.kind, one.path) for one in result.findings] == [(Kind.ALTERED, path)]
    assert result.exit_code is ExitCode.PERMANENT
    assert "1 file was altered, and stay" in result.to_text()
    assert tree(tmp_path) == before


def test_digests_find_altered_bytes_wherever_they_are_shared(
    volume: Volume, tmp_path: Path
) -> None:
    """Each model that holds the altered file is named; without --digests sizes decide."""
    load(volume, files=WEIGHTS)
    load(volume, OTHER_OWNER, model_id="other", files=WEIGHTS)
    with (tmp_path / MODEL_ID / "vae/weights").open("r+b") as file:
        file.write(b"x")
    assert swept(tmp_path).findings == ()
    assert found(tmp_path, Kind.ALTERED, digests=True) == {
        f"{VERSION}/vae/weights": "its bytes are not those that were published",
        f".store/uid-3/{HASH}/vae/weights": "its bytes are not those that were published",
    }


def test_foreign_files_are_named_and_left_alone(volume: Volume, tmp_path: Path) -> None:
    """Whatever else is on the volume is its owner's business, and no fault."""
    load(volume, files=WEIGHTS)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "current").symlink_to(outside)
    (tmp_path / ".store/planted").symlink_to(outside)
    (tmp_path / ".store/a b").mkdir()
    (tmp_path / ".blobs/sha256/notes").write_text("mine")
    before = tree(tmp_path)
    result = swept(tmp_path, delete=True)
    assert {one.path for one in result.findings if one.kind is Kind.FOREIGN} == {
        "current",
        "lost+found",
        "notes.txt",
        ".store/planted",
        ".store/a b",
        ".blobs/sha256/notes",
    }
    assert result.exit_code is ExitCode.DONE
    assert tree(tmp_path) == before


def test_planted_links_are_not_followed(volume: Volume, tmp_path: Path) -> None:
    """Nothing outside is touched, whatever is removed."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "keep").write_text("keep")
    download(volume, "pod")
    (tmp_path / ".staging/uid-1/linked").symlink_to(outside)
    (tmp_path / ".staging/uid-1/pod/linked").symlink_to(outside)
    (tmp_path / ".staging/elsewhere").symlink_to(outside)
    swept(tmp_path, delete=True)
    assert tree(tmp_path) == {}
    assert (outside / "keep").exists()


def test_an_orphan_that_cannot_be_removed_is_told(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go; the exit code asks for another try."""
    interrupted_removal(volume)

    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", busy)
    result = swept(tmp_path, delete=True)
    assert result.exit_code is ExitCode.TRY_AGAIN
    assert "cannot be removed: Device or resource busy" in result.to_text()
    assert "could not be removed: mend the cause" in result.to_text()


# --- the command


def test_the_command_line(tmp_path: Path) -> None:
    """For people a line each and what to do; for programs JSON; the exit code for both."""
    containers = Containers(tmp_path / "store", tmp_path / "container")
    containers.store.mkdir()
    with Volume.open(containers.store) as volume:
        load(volume)
        download(volume, "pod", NEW_HASH)
        with volume.make(".store", ".trash-uid-7") as folder:
            folder.write("weights", bytes(5_000_000))
        load(volume, OTHER_OWNER, model_id="other")
    (containers.store / "no\x1b[31mtes").write_text("mine")
    command = ("sweep", "--store", containers.store)

    listed = containers.run(*command)
    assert listed.code == ExitCode.DONE, listed.stderr
    assert listed.stdout.splitlines() == [
        "orphan      5.0 MB  .store/.trash-uid-7: an interrupted run left it",
        "foreign             no?[31mtes: no load has made it; it is left alone",
        "1 orphan, 5.0 MB: sweep with --delete to remove them.",
    ]

    told = containers.run(*command, "--json", "--older-than", "0")
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(line["kind"], line["path"]) for line in lines] == [
        ("orphan", ".staging/uid-1/pod"),
        ("orphan", ".store/.trash-uid-7"),
        ("foreign", "no\x1b[31mtes"),
    ]
    assert lines[1] == {
        "kind": "orphan",
        "path": ".store/.trash-uid-7",
        "why": "an interrupted run left it",
        "sizeBytes": 5_000_000,
        "removed": False,
        "error": "",
    }

    removed = containers.run(*command, "--delete", "--older-than", "0")
    assert removed.code == ExitCode.DONE, removed.stderr
    assert removed.stdout.splitlines()[-1] == "Removed 2 orphans: 5.0 MB are free again."
    assert not (containers.store / ".staging").exists()
    assert containers.run(*command, "--delete").stdout.splitlines()[-1] == "Nothing to do."

    (containers.store / MODEL_ID / "model_index.json").write_text("[]")
    altered = containers.run(*command, "--digests")
    assert altered.code == ExitCode.PERMANENT
    assert "sd-operator.dev/reload" in altered.stdout.splitlines()[-1]


def test_a_volume_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As every other command does."""
    containers = Containers(tmp_path / "none", tmp_path / "container")
    failed(
        containers.run("sweep", "--store", containers.store),
        Reason.VOLUME_NOT_WRITABLE,
        "no volume at",
    )


@pytest.mark.parametrize("hours", ["x", "-1", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, hours: str) -> None:
    """Before anything is looked at."""
    containers = Containers(tmp_path, tmp_path / "container")
    ended = containers.run("sweep", "--store", tmp_path, f"--older-than={hours}")
    assert ended.code == 2
    assert "--older-than" in ended.stderr
