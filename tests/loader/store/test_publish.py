"""Publishing on the shared volume, and the volumes that support it."""

from __future__ import annotations

import errno
import os
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sd_api.names import RECEIPT_FILE
from sd_api.reasons import Reason
from sd_loader.digests import blake3_of, folder_digest
from sd_loader.errors import LoaderError
from sd_loader.store.ownership import take_ownership
from sd_loader.store.publish import publish, tidy
from sd_loader.store.receipt import find_published
from sd_loader.store.staging import begin, remove_abandoned
from sd_loader.store.volume import Volume
from tests.support.store.volumes import (
    DAY,
    FILES,
    HASH,
    MODEL_ID,
    NEW_HASH,
    NOW,
    OWNER,
    load,
    refused,
    remove,
    tree,
    write_out,
)


def test_a_published_model_is_a_relative_link_to_a_version_with_its_receipt(
    volume: Volume, tmp_path: Path
) -> None:
    """Readers find the files under the model id, at any mount path of the volume."""
    load(volume)
    assert (tmp_path / MODEL_ID).readlink() == Path(f".store/uid-1/{HASH}")
    assert {path: (tmp_path / MODEL_ID / path).read_bytes() for path in FILES} == FILES
    assert (tmp_path / MODEL_ID / RECEIPT_FILE).is_file()
    assert not (tmp_path / ".staging").exists()


def test_published_files_are_readable_by_everybody(volume: Volume, tmp_path: Path) -> None:
    """A version's folders have mode 0755 and its files 0644, for any umask of the loader."""
    before = os.umask(0o077)
    try:
        load(volume)
    finally:
        os.umask(before)
    version = tmp_path / f".store/uid-1/{HASH}"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [version, *version.rglob("*")]}
    assert {path.is_dir(): mode for path, mode in modes.items()} == {True: 0o755, False: 0o644}
    assert stat.S_IMODE((tmp_path / ".store/uid-1").stat().st_mode) & 0o077 == 0


def test_everything_is_durable_before_it_becomes_visible(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure, a version is complete or missing, and the link leads to a version."""
    steps: list[str] = []
    fsync, rename, symlink = os.fsync, os.rename, os.symlink

    def recorded_fsync(fd: int) -> None:
        fsync(fd)
        steps.append(str(Path(f"/proc/self/fd/{fd}").resolve().relative_to(tmp_path)))

    def recorded_rename(old: str, new: str, **fds: int) -> None:
        rename(old, new, **fds)
        steps.append(f"rename {old} {new}")

    def recorded_symlink(target: str, name: str, **fds: int) -> None:
        symlink(target, name, **fds)
        steps.append(f"symlink {name}")

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    monkeypatch.setattr(os, "symlink", recorded_symlink)
    load(volume)

    out = ".staging/uid-1/pod/out"
    moved, linked = steps.index(f"rename out {HASH}"), steps.index(f"symlink {MODEL_ID}")
    contents = {f"{out}/{path}" for path in FILES}
    assert contents | {out, f"{out}/unet"} <= set(steps[:moved])
    assert ".store/uid-1" in steps[moved:linked]
    assert "." in steps[linked:]


def test_the_digest_is_that_of_the_sorted_list_of_files() -> None:
    """A user can compute the same digest with b3sum."""
    lines = f"{'1' * 64}  a\n{'2' * 64}  b/c\n"
    assert folder_digest({"b/c": "2" * 64, "a": "1" * 64}) == f"blake3:{blake3_of(lines.encode())}"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda version: (version / RECEIPT_FILE).unlink(), id="receipt missing"),
        pytest.param(lambda version: (version / RECEIPT_FILE).write_text("{"), id="receipt cut"),
        pytest.param(lambda version: (version / "model_index.json").unlink(), id="file missing"),
        pytest.param(lambda version: (version / "model_index.json").write_text(""), id="file cut"),
    ],
)
def test_a_damaged_version_does_not_count_as_published_and_is_replaced(
    volume: Volume, tmp_path: Path, damage
) -> None:
    """A load that finds an incomplete version of itself publishes a complete one."""
    load(volume)
    damage(tmp_path / f".store/uid-1/{HASH}")
    assert find_published(volume, OWNER.uid, HASH) is None
    load(volume)
    assert find_published(volume, OWNER.uid, HASH) is not None


def test_a_second_pod_returns_the_receipt_of_the_first(volume: Volume, tmp_path: Path) -> None:
    """Two Pods of one load publish once. The second returns the receipt of the first."""
    first = load(volume)
    inode = (tmp_path / MODEL_ID).stat().st_ino
    with begin(volume, OWNER.uid, "late-pod", HASH) as staging:
        late = write_out(staging.fresh_out(), OWNER, HASH).model_copy(update={"message": "late"})
        assert publish(volume, OWNER, MODEL_ID, staging, late) == first
    assert (tmp_path / MODEL_ID).stat().st_ino == inode


def test_a_reload_keeps_the_previous_version_for_a_while(volume: Volume, tmp_path: Path) -> None:
    """Readers that resolved the link before the reload can finish."""
    load(volume)
    load(volume, load_hash=NEW_HASH)
    versions = tmp_path / ".store/uid-1"
    assert (tmp_path / MODEL_ID).readlink() == Path(f".store/uid-1/{NEW_HASH}")
    assert (versions / HASH / "model_index.json").exists()

    tidy(volume, OWNER, NEW_HASH, DAY, NOW + DAY - timedelta(seconds=1))
    assert (versions / HASH).exists()
    tidy(volume, OWNER, NEW_HASH, DAY, NOW + DAY)
    assert sorted(path.name for path in versions.iterdir()) == [NEW_HASH, "owner.json"]


def test_a_model_that_was_removed_during_its_load_is_not_published(
    volume: Volume, tmp_path: Path
) -> None:
    """A Pod that runs longer than its model exists leaves nothing on the volume."""
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with begin(volume, OWNER.uid, "pod", HASH) as staging:
        receipt = write_out(staging.fresh_out(), OWNER, HASH)
        remove(volume, OWNER, MODEL_ID)
        with refused(Reason.LOADER_CRASHED, "removed from the volume while"):
            publish(volume, OWNER, MODEL_ID, staging, receipt)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("operation", ["rename", "symlink"])
def test_a_removal_in_the_middle_of_publishing_wins(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """At whatever step the removal happens, no version and no dangling link stay."""
    original = getattr(os, operation)

    def removed_before(*args: str, **fds: int) -> None:
        if args[-1] in {HASH, MODEL_ID}:
            monkeypatch.undo()
            remove(volume, OWNER, MODEL_ID)
        original(*args, **fds)

    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with begin(volume, OWNER.uid, "pod", HASH) as staging:
        receipt = write_out(staging.fresh_out(), OWNER, HASH)
        monkeypatch.setattr(os, operation, removed_before)
        with pytest.raises((LoaderError, FileNotFoundError)):
            publish(volume, OWNER, MODEL_ID, staging, receipt)
    assert not (tmp_path / MODEL_ID).is_symlink()
    assert not list(tmp_path.glob(".store/*/*"))


def test_a_superseded_load_does_not_publish(volume: Volume, tmp_path: Path) -> None:
    """A Pod of the previous spec that still runs on a lost node cannot replace the new version."""
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with begin(volume, OWNER.uid, "old-pod", HASH) as staging:
        receipt = write_out(staging.fresh_out(), OWNER, HASH)
        load(volume, load_hash=NEW_HASH)
        with refused(Reason.LOADER_CRASHED, "a newer load"):
            publish(volume, OWNER, MODEL_ID, staging, receipt)
    assert (tmp_path / MODEL_ID).readlink() == Path(f".store/uid-1/{NEW_HASH}")


@pytest.mark.parametrize("place", [".staging", ".staging/uid-1", ".store", ".store/uid-1"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_planted_link_or_file_is_refused(
    volume: Volume, tmp_path: Path, place: str, kind: str
) -> None:
    """The load fails if a folder is replaced. Files outside the volume stay unchanged."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    (outside / "uid-1").mkdir(parents=True)
    (outside / "uid-1" / "keep").write_text("keep")
    before = tree(outside)
    planted = tmp_path / place
    planted.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        planted.symlink_to(outside)
    else:
        planted.write_text("")
    with refused(Reason.VOLUME_NOT_WRITABLE, "must be a folder, but a link or file is in its path"):
        load(volume)
    assert tree(outside) == before


def test_removal_does_not_follow_planted_links(volume: Volume, tmp_path: Path) -> None:
    """Links in the owner's folders are removed and not followed."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "keep").write_text("keep")
    load(volume)
    (tmp_path / f".store/uid-1/{HASH}/planted").symlink_to(outside)
    (tmp_path / ".store/uid-1/planted").symlink_to(outside)
    (tmp_path / ".staging/uid-1").mkdir(parents=True)
    (tmp_path / ".staging/uid-1/pod").symlink_to(outside)
    remove(volume, OWNER, MODEL_ID)
    assert tree(tmp_path) == {}
    assert (outside / "keep").exists()


def test_a_link_among_the_converted_files_is_not_published(volume: Volume, tmp_path: Path) -> None:
    """Only regular files are published."""
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    with begin(volume, OWNER.uid, "pod", HASH) as staging:
        receipt = write_out(staging.fresh_out(), OWNER, HASH)
        with staging.fresh_out() as out:
            out.make_link("model_index.json", "/etc/passwd")
        with pytest.raises(OSError, match="model_index"):
            publish(volume, OWNER, MODEL_ID, staging, receipt)
    assert not (tmp_path / MODEL_ID).exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b"])
def test_a_path_is_refused_as_a_name(volume: Volume, name: str) -> None:
    """Every operation accepts only a single path component."""
    for operate in (volume.root.open_folder, volume.root.discard, volume.root.open_file):
        with pytest.raises(ValueError, match="not a file name"):
            operate(name)


def test_the_probe_leaves_no_files(volume: Volume, tmp_path: Path) -> None:
    """A supported volume passes the probe."""
    volume.probe(OWNER.uid)
    volume.remove_if_empty(OWNER.uid)
    assert tree(tmp_path) == {}


def test_a_probe_that_another_pod_removes_is_repeated(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Pods of one model may start at the same time."""
    original, calls = os.symlink, 0

    def tidied(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            remove_abandoned(volume, OWNER.uid)
        original(*args, **kwargs)

    monkeypatch.setattr(os, "symlink", tidied)
    volume.probe(OWNER.uid)
    assert calls == 3  # one in vain, two in a whole probe


@pytest.mark.parametrize("operation", ["symlink", "rename"])
def test_a_volume_without_links_or_renames_is_unsupported(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The probe refuses such a volume, which may be a mount of an object store."""
    original = getattr(os, operation)

    def fail(*args: object, **kwargs: object) -> None:
        # The probe first renames its own file, which works. Only links cannot be renamed.
        if operation == "rename" and args[1] == "file":
            original(*args, **kwargs)
            return
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, operation, fail)
    with refused(Reason.UNSUPPORTED_VOLUME, "does not support symbolic links, or cannot rename"):
        volume.probe(OWNER.uid)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_volume_that_is_not_writable_is_reported(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The message has the text of the volume's error."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", fail)
    with refused(Reason.VOLUME_NOT_WRITABLE, os.strerror(code)):
        volume.probe(OWNER.uid)


def test_a_missing_volume_is_reported(tmp_path: Path) -> None:
    """The error names the path that cannot be opened."""
    with (
        refused(Reason.VOLUME_NOT_WRITABLE, "cannot open the volume at .*missing"),
        Volume.open(tmp_path / "missing"),
    ):
        pytest.fail("opened")
