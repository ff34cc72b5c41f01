"""Tests of which model owns a model id, and of what a later model with that id takes over."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sd_api.load import Owner
from sd_api.reasons import Reason
from sd_api.wire import Receipt
from sd_loader.store import removal
from sd_loader.store.adopt import adopt
from sd_loader.store.ownership import give_up, read_owner, take_ownership
from sd_loader.store.publish import publish, tidy
from sd_loader.store.receipt import find_published
from sd_loader.store.staging import begin
from sd_loader.store.volume import Volume
from tests.support.store.volumes import (
    DAY,
    FILES,
    HASH,
    MODEL_ID,
    NAMESAKE,
    NEW_HASH,
    NOW,
    OWNER,
    STRANGER,
    load,
    load_untidily,
    refused,
    remove,
    tree,
    write_out,
)


def test_another_models_id_is_a_conflict_that_names_its_owner(
    volume: Volume, tmp_path: Path
) -> None:
    """The error names the owner. The owner's files stay unchanged."""
    load(volume)
    before = tree(tmp_path)
    with refused(Reason.MODEL_ID_CONFLICT, "m belongs to ns/m"):
        take_ownership(volume, STRANGER, MODEL_ID, HASH)
    assert tree(tmp_path) == before


def test_the_first_model_to_publish_owns_the_id(volume: Volume, tmp_path: Path) -> None:
    """If two models start at once, only one can publish, and the other leaves no version behind."""
    take_ownership(volume, STRANGER, MODEL_ID, HASH)
    with begin(volume, STRANGER.uid, "pod", HASH) as staging:
        receipt = write_out(staging.fresh_out(), STRANGER, HASH)
        load(volume)
        before = tree(tmp_path / MODEL_ID)
        with refused(Reason.MODEL_ID_CONFLICT, "belongs to ns/m"):
            publish(volume, STRANGER, MODEL_ID, staging, receipt)
    assert tree(tmp_path / MODEL_ID) == before
    assert not (tmp_path / f".store/uid-3/{HASH}").exists()


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        pytest.param(lambda path: path.mkdir(), "a folder", id="folder"),
        pytest.param(lambda path: path.write_text("mine"), "a file", id="file"),
        pytest.param(lambda path: path.symlink_to("elsewhere"), "a link", id="link elsewhere"),
        pytest.param(
            lambda path: path.symlink_to(f"../x/.store/uid-1/{HASH}"), "a link", id="link outside"
        ),
    ],
)
def test_a_users_file_under_the_model_id_is_a_conflict_and_stays(
    volume: Volume, tmp_path: Path, plant, what: str
) -> None:
    """The loader replaces only links that it created."""
    plant(tmp_path / MODEL_ID)
    before = tree(tmp_path)
    with refused(
        Reason.MODEL_ID_CONFLICT, f"m on the volume is {what} that the loader did not create"
    ):
        take_ownership(volume, OWNER, MODEL_ID, HASH)
    remove(volume, OWNER, MODEL_ID)
    assert tree(tmp_path) == before


def test_an_unreadable_owner_record_is_a_conflict(volume: Volume, tmp_path: Path) -> None:
    """Without a readable record the owner of the files is unknown, so they stay."""
    load(volume)
    (tmp_path / ".store/uid-1/owner.json").write_text("{}")
    with refused(Reason.MODEL_ID_CONFLICT, r"owner\.json cannot be read"):
        take_ownership(volume, NAMESAKE, MODEL_ID, HASH)


def test_a_dangling_link_is_replaced(volume: Volume, tmp_path: Path) -> None:
    """A link to a model whose files were removed does not reserve the id."""
    (tmp_path / MODEL_ID).symlink_to(f".store/uid-9/{HASH}")
    load(volume)
    assert (tmp_path / MODEL_ID / "model_index.json").exists()


def test_two_pods_may_record_the_owner_at_the_same_time(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one Pod removes the other's temporary file as an orphan, the file is written again."""
    original, calls = os.rename, 0

    def tidied(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            with volume.root.open_folder(".store", OWNER.uid) as folder:
                folder.remove_unfinished()
        original(*args, **kwargs)

    monkeypatch.setattr(os, "rename", tidied)
    assert take_ownership(volume, OWNER, MODEL_ID, HASH) == read_owner(volume, OWNER.uid)
    assert calls == 2


def test_a_failed_load_keeps_the_record_of_a_newer_load(volume: Volume, tmp_path: Path) -> None:
    """The failure of an old Pod does not stop the load that replaced it."""
    take_ownership(volume, OWNER, MODEL_ID, HASH)
    newer = take_ownership(volume, OWNER, MODEL_ID, NEW_HASH)
    give_up(volume, OWNER.uid, HASH)
    assert read_owner(volume, OWNER.uid) == newer
    give_up(volume, OWNER.uid, NEW_HASH)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("retain", [False, True], ids=["uid gone", "released"])
def test_a_new_owner_takes_the_id_over_and_replaces_the_old_files(
    volume: Volume, tmp_path: Path, retain: bool
) -> None:
    """The old version stays published until the new one is published."""
    load(volume)
    if retain:
        removal.release(volume, OWNER)
    take_ownership(volume, NAMESAKE, MODEL_ID, NEW_HASH)
    assert (tmp_path / MODEL_ID / "model_index.json").exists()
    load(volume, NAMESAKE, NEW_HASH)
    assert (tmp_path / MODEL_ID).readlink() == Path(f".store/uid-2/{NEW_HASH}")
    assert not (tmp_path / ".store/uid-1").exists()
    record = read_owner(volume, "uid-2")
    assert record is not None
    assert record.taken_from == ()


def test_a_chain_of_owners_leaves_only_the_files_of_the_last(
    volume: Volume, tmp_path: Path
) -> None:
    """If a takeover is killed, the next owner removes the files of all previous owners."""
    load(volume)
    load_untidily(volume, NAMESAKE, HASH, MODEL_ID)
    assert (tmp_path / ".store/uid-1").exists()
    last = NAMESAKE.model_copy(update={"uid": "uid-4"})
    load(volume, last)
    assert [path.name for path in (tmp_path / ".store").iterdir()] == ["uid-4"]


def adopted(volume: Volume, owner: Owner = NAMESAKE, load_hash: str = HASH) -> Receipt | None:
    """Let a new owner adopt and publish a version. Return its receipt, or None."""
    record = take_ownership(volume, owner, MODEL_ID, load_hash)
    with begin(volume, owner.uid, "pod", load_hash) as staging:
        receipt = adopt(volume, record, load_hash, staging, lambda _: None)
        if receipt is not None:
            publish(volume, owner, MODEL_ID, staging, receipt)
        staging.discard()
    tidy(volume, owner, load_hash, DAY, NOW)
    return receipt


def test_a_previous_owners_equal_load_is_adopted_without_copying(
    volume: Volume, tmp_path: Path
) -> None:
    """The same files are published under the new uid, with a new receipt."""
    first = load(volume)
    inode = (tmp_path / MODEL_ID / "model_index.json").stat().st_ino
    receipt = adopted(volume)
    assert receipt == first.model_copy(update={"uid": "uid-2"})
    assert find_published(volume, "uid-2", HASH) == receipt
    assert (tmp_path / MODEL_ID / "model_index.json").stat().st_ino == inode
    assert [path.name for path in (tmp_path / ".store").iterdir()] == ["uid-2"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP])
def test_adoption_copies_if_hard_links_fail(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a file system without hard links, the files are copied and not downloaded again."""

    def no_link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    load(volume)
    monkeypatch.setattr(os, "link", no_link)
    assert adopted(volume) is not None
    assert (tmp_path / MODEL_ID / "unet/config.json").read_bytes() == FILES["unet/config.json"]


def test_altered_files_are_not_adopted(volume: Volume, tmp_path: Path) -> None:
    """If one bit has changed, the model is downloaded again."""
    load(volume)
    (tmp_path / MODEL_ID / "unet/config.json").write_bytes(b'{"a": 2}')
    assert adopted(volume) is None


def test_planted_links_are_not_adopted(volume: Volume, tmp_path: Path) -> None:
    """A link in place of a version's folder is not followed."""
    load(volume)
    unet = tmp_path / f".store/uid-1/{HASH}/unet"
    unet.rename(tmp_path / "outside")
    unet.symlink_to(tmp_path / "outside")
    assert adopted(volume) is None


def test_another_load_is_not_adopted(volume: Volume) -> None:
    """A version with another load hash is not adopted."""
    load(volume)
    assert adopted(volume, load_hash=NEW_HASH) is None
