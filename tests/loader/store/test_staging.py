"""Staging folders: downloads of Pods, and their clean-up."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from sd_api.reasons import Reason
from sd_loader.store import removal
from sd_loader.store.ownership import read_owner, take_ownership
from sd_loader.store.staging import begin, resume
from sd_loader.store.volume import Volume
from tests.support.store.volumes import (
    HASH,
    MODEL_ID,
    NAMESAKE,
    NEW_HASH,
    OWNER,
    STRANGER,
    download,
    load,
    refused,
    remove,
    tree,
)


def test_the_next_pod_takes_over_a_partial_download(volume: Volume, tmp_path: Path) -> None:
    """The next Pod gets the folder with the bytes that are already downloaded."""
    download(volume, "pod-1")
    with begin(volume, OWNER.uid, "pod-2", HASH) as staging, staging.source() as source:
        assert source.read("file", 100) == b"part"
    assert [path.name for path in (tmp_path / ".staging/uid-1").iterdir()] == ["pod-2"]


def test_a_download_for_another_spec_is_removed(volume: Volume, tmp_path: Path) -> None:
    """Downloads of two sources are never mixed in one folder, for the same Pod and for another."""
    for pod in ("pod-1", "pod-2"):
        download(volume, "pod-1")
        with begin(volume, OWNER.uid, pod, NEW_HASH) as staging, staging.source() as source:
            assert source.names() == []
        assert [path.name for path in (tmp_path / ".staging/uid-1").iterdir()] == [pod]


def test_a_running_pods_download_is_not_taken_over(volume: Volume) -> None:
    """If a node is lost, two Pods may run. The second one starts a new download."""
    with begin(volume, OWNER.uid, "pod-1", HASH) as first, first.source() as source:
        source.write("file", b"part")
        with begin(volume, OWNER.uid, "pod-2", HASH) as second, second.source() as other:
            assert other.names() == []
        first.confirm()
        assert source.read("file", 100) == b"part"


def test_without_locks_a_pod_that_lost_its_folder_does_not_publish(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks, the rename decides which Pod owns the folder."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with begin(volume, OWNER.uid, "pod-1", HASH) as first:
        with begin(volume, OWNER.uid, "pod-2", HASH) as second:
            second.confirm()
        with refused(Reason.LOADER_CRASHED, "pod-1 is gone: another Pod"):
            first.confirm()


def test_two_processes_of_one_pod_do_not_share_its_folder(volume: Volume) -> None:
    """The second process is refused with an error that allows another try."""
    with (
        begin(volume, OWNER.uid, "pod", HASH),
        refused(Reason.LOADER_CRASHED, "another process uses the staging folder of pod"),
        begin(volume, OWNER.uid, "pod", HASH),
    ):
        pytest.fail("claimed twice")


def test_convert_without_a_fetch_is_refused(volume: Volume) -> None:
    """A download of another Pod or of another load is not converted."""
    download(volume, "pod-1")
    for pod, load_hash in (("pod-2", HASH), ("pod-1", NEW_HASH)):
        with (
            refused(Reason.LOADER_CRASHED, "has no download of this load"),
            resume(volume, OWNER.uid, pod, load_hash),
        ):
            pytest.fail("resumed what is not there")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "link") for name in ("lock", "load-hash", "source", "source/file", "out/unet")),
        ("lock", "folder"),
        ("load-hash", "folder"),
        ("source", "file"),
        ("out", "file"),
    ],
)
def test_planted_files_in_a_download_are_removed(
    volume: Volume, tmp_path: Path, name: str, kind: str
) -> None:
    """The next Pod starts a new download, and convert refuses to start.

    A link is never followed.
    """
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("keep")
    download(volume, "pod-1")
    place = tmp_path / ".staging/uid-1/pod-1" / name
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(outside)
        if name != "lock":  # The loader replaces a lock that is not a file.
            with (
                refused(Reason.LOADER_CRASHED, "has no download of this load"),
                resume(volume, OWNER.uid, "pod-1", HASH),
            ):
                pytest.fail("resumed what was planted")
    elif kind == "file":
        place.write_text("")
    else:
        place.mkdir()
    with begin(volume, OWNER.uid, "pod-2", HASH) as staging:
        assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
        assert staging.load_hash() == HASH
        with staging.source() as source, staging.out() as out:
            source.write("file", b"part")
            out.make_folder("unet").close()
    assert [path.name for path in (tmp_path / ".staging/uid-1").iterdir()] == ["pod-2"]
    assert outside.read_text() == "keep"


@pytest.mark.parametrize("pod", ["../x", "a/b", "", ".hidden", "a" * 300])
def test_a_pods_name_is_one_path_component(volume: Volume, pod: str) -> None:
    """A Pod name with a path is refused."""
    with (
        refused(Reason.LOADER_CRASHED, "SD_LOADER_POD is not a valid Pod name"),
        begin(volume, OWNER.uid, pod, HASH),
    ):
        pytest.fail("claimed")


def test_removal_leaves_no_files(volume: Volume, tmp_path: Path) -> None:
    """Published versions, previous versions and staging folders are removed."""
    load(volume)
    load(volume, load_hash=NEW_HASH)
    download(volume, "pod", load_hash="2" * 16)
    remove(volume, OWNER, MODEL_ID)
    assert tree(tmp_path) == {}


def test_removal_can_be_repeated(volume: Volume, tmp_path: Path) -> None:
    """Removing a model that does not exist succeeds."""
    remove(volume, OWNER, MODEL_ID)
    load(volume)
    remove(volume, OWNER, MODEL_ID)
    remove(volume, OWNER, MODEL_ID)
    assert tree(tmp_path) == {}


def test_removal_leaves_other_models_alone(volume: Volume, tmp_path: Path) -> None:
    """Only the owner's files are removed. A link that now belongs to another owner stays."""
    load(volume, STRANGER)
    before = tree(tmp_path)
    load(volume, OWNER, model_id="mine")
    remove(volume, OWNER, "mine")
    remove(volume, NAMESAKE, MODEL_ID)
    assert tree(tmp_path) == before


def test_a_late_removal_keeps_the_new_owners_files(volume: Volume, tmp_path: Path) -> None:
    """If the model was created again meanwhile, only files of the old uid are removed."""
    load(volume)
    load(volume, NAMESAKE)
    before = tree(tmp_path)
    remove(volume, OWNER, MODEL_ID)
    assert tree(tmp_path) == before


def test_removal_before_the_first_publication_removes_the_previous_owners_files(
    volume: Volume, tmp_path: Path
) -> None:
    """A model that took over an id also removes the files of the previous owner."""
    load(volume)
    take_ownership(volume, NAMESAKE, MODEL_ID, NEW_HASH)
    remove(volume, NAMESAKE, MODEL_ID)
    assert tree(tmp_path) == {}


def test_a_retained_model_stays_and_its_staging_is_removed(volume: Volume, tmp_path: Path) -> None:
    """With deletionPolicy Retain, only the published files are kept."""
    load(volume)
    served = tree(tmp_path / MODEL_ID)
    download(volume, "pod", load_hash=NEW_HASH)
    removal.release(volume, OWNER)
    assert tree(tmp_path / MODEL_ID) == served
    assert not (tmp_path / ".staging").exists()
    record = read_owner(volume, OWNER.uid)
    assert record is not None
    assert record.released
