"""Models share equal files on the volume as hard links."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sd_api.names import BLOBS_DIR
from sd_api.wire import Receipt
from sd_loader.store.adopt import adopt
from sd_loader.store.blobs import SHARED_FROM
from sd_loader.store.ownership import take_ownership
from sd_loader.store.publish import publish, tidy
from sd_loader.store.receipt import find_published
from sd_loader.store.staging import begin
from sd_loader.store.volume import Volume
from tests.support.store.volumes import (
    DAY,
    HASH,
    MODEL_ID,
    NAMESAKE,
    NEW_HASH,
    NOW,
    OWNER,
    STRANGER,
    load,
    remove,
    tree,
    write_out,
)

VAE = os.urandom(SHARED_FROM)
CONFIG = b'{"sample_size": 64}'
OTHER_OWNER = STRANGER.model_copy(update={"name": "other"})
OTHER = "other"


def files(unet: bytes) -> dict[str, bytes]:
    """Return the files of a model with this UNet and the VAE that all models here have."""
    return {"model_index.json": CONFIG, "unet/weights": unet * SHARED_FROM, "vae/weights": VAE}


ONE = files(b"1")
TWO = files(b"2")


def load_one(volume: Volume, content: Mapping[str, bytes] = ONE) -> Receipt:
    """Load the first model."""
    return load(volume, files=content)


def load_two(volume: Volume, content: Mapping[str, bytes] = TWO) -> Receipt:
    """Load the second model, which belongs to another namespace."""
    return load(volume, OTHER_OWNER, model_id=OTHER, files=content)


def remove_one(volume: Volume) -> None:
    """Remove the first model."""
    remove(volume, OWNER, MODEL_ID)


def remove_two(volume: Volume) -> None:
    """Remove the second model."""
    remove(volume, OTHER_OWNER, OTHER)


def vae(root: Path, model_id: str = MODEL_ID) -> os.stat_result:
    """Return the status of a published model's VAE."""
    return (root / model_id / "vae/weights").stat()


def occupied(root: Path) -> int:
    """Return the bytes that all files of the volume occupy on disk, as `du` counts them."""
    statuses = {path.lstat().st_ino: path.lstat() for path in root.rglob("*") if path.is_file()}
    return sum(status.st_blocks * 512 for status in statuses.values())


def blobs(root: Path) -> list[Path]:
    """Return the paths of all blobs."""
    return sorted((root / ".blobs").rglob("*/*/*"))


def no_link(code: int) -> Callable[..., None]:
    """Return a replacement of `os.link` that fails with this error."""

    def link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return link


def serves(root: Path, model_id: str, content: Mapping[str, bytes]) -> bool:
    """Return whether the published model has these files with this content."""
    return all((root / model_id / path).read_bytes() == data for path, data in content.items())


def test_two_models_store_the_same_vae_once(volume: Volume, tmp_path: Path) -> None:
    """Models of two namespaces share the file.

    The receipt reports the saved bytes, and the disk confirms them.
    """
    first = load_one(volume)
    alone = occupied(tmp_path)
    second = load_two(volume)
    assert (first.artifact.shared_bytes, second.artifact.shared_bytes) == (0, len(VAE))
    assert second.result().artifact == second.artifact
    assert vae(tmp_path).st_ino == vae(tmp_path, OTHER).st_ino
    assert vae(tmp_path).st_nlink == 3
    assert occupied(tmp_path) - alone < SHARED_FROM + (64 << 10)
    assert serves(tmp_path, MODEL_ID, ONE)
    assert serves(tmp_path, OTHER, TWO)
    assert len(blobs(tmp_path)) == 3
    assert find_published(volume, OTHER_OWNER.uid, HASH) == second


def test_a_shared_file_stays_until_both_models_are_removed(volume: Volume, tmp_path: Path) -> None:
    """The other model stays intact. After both removals the volume is empty."""
    load_one(volume)
    load_two(volume)
    remove_one(volume)
    assert serves(tmp_path, OTHER, TWO)
    assert vae(tmp_path, OTHER).st_nlink == 2
    assert len(blobs(tmp_path)) == 2
    remove_two(volume)
    assert tree(tmp_path) == {}


def test_a_reload_shares_with_the_previous_version(volume: Volume, tmp_path: Path) -> None:
    """Only changed files take new space. Shared files stay when the previous version is removed."""
    load_one(volume)
    receipt = load(volume, load_hash=NEW_HASH, files=TWO)
    previous = tmp_path / f".store/uid-1/{HASH}"
    assert receipt.artifact.shared_bytes == len(VAE)
    assert vae(tmp_path).st_ino == (previous / "vae/weights").stat().st_ino

    tidy(volume, OWNER, NEW_HASH, DAY, NOW + DAY)
    assert not previous.exists()
    assert serves(tmp_path, MODEL_ID, TWO)
    assert {path.stat().st_nlink for path in blobs(tmp_path)} == {2}
    assert len(blobs(tmp_path)) == 2


def test_small_files_are_never_shared(volume: Volume, tmp_path: Path) -> None:
    """If a user edits a config in place, no other model changes."""
    load_one(volume)
    load_two(volume)
    assert (tmp_path / MODEL_ID / "model_index.json").stat().st_nlink == 1


def test_an_adopted_model_shares_with_others_but_not_with_its_previous_owner(
    volume: Volume, tmp_path: Path
) -> None:
    """The previous owner's files are removed at once, so they do not count as shared."""
    load_one(volume)
    alone = adopted(volume, NAMESAKE.uid)
    assert alone.artifact.shared_bytes == 0
    assert vae(tmp_path).st_nlink == 2

    load_two(volume)
    beside_another = adopted(volume, "uid-4")
    assert beside_another.artifact.shared_bytes == len(VAE)
    assert vae(tmp_path).st_nlink == 3
    assert len(blobs(tmp_path)) == 3


def adopted(volume: Volume, uid: str) -> Receipt:
    """Adopt the version of another uid of the same model, publish it, and return its receipt."""
    owner = NAMESAKE.model_copy(update={"uid": uid})
    record = take_ownership(volume, owner, MODEL_ID, HASH)
    with begin(volume, uid, "pod", HASH) as staging:
        receipt = adopt(volume, record, HASH, staging, lambda _: None)
        assert receipt is not None
        receipt = publish(volume, owner, MODEL_ID, staging, receipt)
        staging.discard()
    tidy(volume, owner, HASH, DAY, NOW)
    return receipt


@pytest.mark.parametrize(
    ("code", "is_logged"),
    [
        (errno.EPERM, False),
        (errno.EXDEV, False),
        (errno.EMLINK, False),
        (errno.EOPNOTSUPP, False),
        (errno.ENOSYS, False),
        (errno.EIO, True),
        (errno.ENOSPC, True),
        (errno.EEXIST, True),
    ],
    ids=errno.errorcode.get,
)
def test_each_model_has_its_own_copy_if_links_fail(
    volume: Volume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    is_logged: bool,
) -> None:
    """A volume without hard links needs more space, but the load succeeds.

    Only an unusual error is logged.
    """
    load_one(volume)
    monkeypatch.setattr(os, "link", no_link(code))
    receipt = load_two(volume)
    assert receipt.artifact.shared_bytes == 0
    assert serves(tmp_path, OTHER, TWO)
    assert vae(tmp_path).st_ino != vae(tmp_path, OTHER).st_ino
    assert ("vae/weights is not shared" in caplog.text) == is_logged
    assert not [path for path in tree(tmp_path) if ".shared-" in path]


def test_each_model_has_its_own_copy_if_blobs_are_on_another_file_system(
    volume: Volume, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The test mounts a second file system, so the EXDEV error is real."""
    mounted = tmp_path / ".blobs"
    mounted.mkdir()
    ended = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", mounted], capture_output=True, text=True
    )
    if ended.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {ended.stderr.strip()}")
    request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", mounted], check=True))
    load_one(volume)
    assert load_two(volume).artifact.shared_bytes == 0
    assert serves(tmp_path, OTHER, TWO)
    assert blobs(tmp_path) == []


def alter(blob: Path) -> None:
    """Change one byte of the blob in place, and thus of the model's file too."""
    with blob.open("r+b") as file:
        file.write(b"x" if VAE[:1] != b"x" else b"y")


def cut(blob: Path) -> None:
    """Truncate the blob, and thus the model's file too."""
    os.truncate(blob, SHARED_FROM - 1)


def plant_link(blob: Path) -> None:
    """Replace the blob by a symbolic link to its content, hard-linked twice to seem used."""
    target = blob.parent / "target"
    target.write_bytes(VAE)
    blob.unlink()
    blob.symlink_to(target)
    os.link(blob, blob.parent / "again", follow_symlinks=False)


def plant_file(blob: Path) -> None:
    """Replace the blob by another file of the same size."""
    blob.unlink()
    blob.write_bytes(b"z" * SHARED_FROM)
    os.link(blob, blob.parent / "again")


def plant_pipe(blob: Path) -> None:
    """Replace the blob by a pipe without a writer."""
    blob.unlink()
    os.mkfifo(blob)
    os.link(blob, blob.parent / "again")


@pytest.mark.parametrize("damage", [alter, cut, plant_link, plant_file, plant_pipe])
def test_an_altered_or_planted_blob_is_not_used(
    volume: Volume, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A file with another digest is never linked into a model. The next load shares again."""
    load_one(volume)
    (blob,) = (path for path in blobs(tmp_path) if path.stat().st_ino == vae(tmp_path).st_ino)
    damage(blob)
    receipt = load_two(volume)
    assert receipt.artifact.shared_bytes == 0
    assert serves(tmp_path, OTHER, TWO)
    third = OTHER_OWNER.model_copy(update={"uid": "uid-5", "name": "third"})
    assert load(volume, third, model_id="third", files=TWO).artifact.shared_bytes == 2 * len(VAE)
    assert serves(tmp_path, "third", TWO)


@pytest.mark.parametrize("place", [".blobs", ".blobs/blake3"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_in_place_of_the_blobs_folder_is_not_followed(
    volume: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, kind: str
) -> None:
    """Files outside the volume stay unchanged.

    Loads and removals still succeed, but models share no files.
    """
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    planted = tmp_path / place
    planted.parent.mkdir(exist_ok=True)
    if kind == "link":
        planted.symlink_to(outside)
    else:
        planted.write_text("")
    load_one(volume)
    assert load_two(volume).artifact.shared_bytes == 0
    assert serves(tmp_path, OTHER, TWO)
    remove_one(volume)
    remove_two(volume)
    assert list(outside.iterdir()) == []
    assert not (tmp_path / ".store").exists()
    assert "must be a folder, but a link or file is in its path" in caplog.text


def test_another_users_file_is_not_shared(
    volume: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file's owner could change it later, and the model would change too."""
    if os.geteuid():
        pytest.skip("only root can give files away")
    load_one(volume)
    for path in blobs(tmp_path):
        os.chown(path, 12345, -1)
    assert load_two(volume).artifact.shared_bytes == 0
    assert caplog.text == ""


def test_an_unused_blob_is_replaced_without_being_read(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unused blob, as a killed removal leaves it, saves no space and is not trusted."""
    load_one(volume)
    monkeypatch.setattr("sd_loader.store.blobs.drop_unused", lambda _: None)
    remove_one(volume)
    assert {path.stat().st_nlink for path in blobs(tmp_path)} == {1}
    monkeypatch.undo()
    receipt = load_two(volume)
    assert receipt.artifact.shared_bytes == 0
    assert len(blobs(tmp_path)) == 2
    assert {path.stat().st_nlink for path in blobs(tmp_path)} == {2}


def test_a_blob_that_cannot_be_removed_does_not_fail_the_removal(
    volume: Volume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The model is removed. The next run tries to remove the blob again."""
    unlink = Volume.unlink

    def denied(self: Volume, path: str) -> None:
        if path.startswith(BLOBS_DIR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(self, path)

    load_one(volume)
    monkeypatch.setattr(Volume, "unlink", denied)
    remove_one(volume)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [".blobs"]
    assert "remove unused shared files" in caplog.text
    remove_two(volume)
    assert tree(tmp_path) == {}


def test_concurrent_loads_and_removals_do_not_damage_models(tmp_path: Path) -> None:
    """Every published model is complete, and nothing is left at the end."""

    def come_and_go(number: int) -> None:
        model_id = f"model-{number}"
        owner = OWNER.model_copy(update={"uid": f"uid-{number}", "name": model_id})
        with Volume.open(tmp_path) as volume:
            for _ in range(10):
                load(volume, owner, model_id=model_id, files=ONE)
                assert serves(tmp_path, model_id, ONE)
                assert find_published(volume, owner.uid, HASH) is not None
                remove(volume, owner, model_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    with Volume.open(tmp_path) as volume:
        remove(volume, OWNER, MODEL_ID)
    assert tree(tmp_path) == {}


def test_two_pods_of_one_load_publish_it_once(volume: Volume, tmp_path: Path) -> None:
    """The second Pod's files are removed, and the file that they were linked to stays."""
    load_two(volume)
    first = load_one(volume)
    with begin(volume, OWNER.uid, "late-pod", HASH) as staging:
        late = write_out(staging.fresh_out(), OWNER, HASH, ONE)
        assert publish(volume, OWNER, MODEL_ID, staging, late) == first
        staging.discard()
    tidy(volume, OWNER, HASH, DAY, NOW)
    assert vae(tmp_path).st_nlink == 3
