"""Files that the volume has are linked instead of downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.names import RECEIPT_FILE
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.handover import Arrived, Fetched
from sd_loader.settings import Settings
from sd_loader.store.at_hand import FilesAtHand
from sd_loader.store.blobs import SHARED_FROM
from sd_loader.store.volume import Volume
from tests.support.loader.fetches import fetch
from tests.support.loader.hubfetches import NEEDED, REPO, UNET, write_repo
from tests.support.models.conversions import load_request
from tests.support.store.volumes import HASH, OWNER, load

CONTENT = os.urandom(SHARED_FROM)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A volume with a model whose UNet was published as it was downloaded."""
    root = tmp_path / "volume"
    root.mkdir()
    with Volume.open(root) as volume:
        load(volume, files={UNET: CONTENT})
    receipt = root / ".store" / OWNER.uid / HASH / RECEIPT_FILE
    known = json.loads(receipt.read_text())
    known["files"][UNET]["sha256"] = SHA256
    receipt.write_text(json.dumps(known))
    return root


def blob(root: Path) -> Path:
    """Return the path of the volume's only blob."""
    return next((root / ".blobs").rglob("[0-9a-f]" * 64))


def found(root: Path, sha256: str = SHA256, size: int = SHARED_FROM) -> Arrived | None:
    """Look a file up by its SHA-256, and link it as `taken` if the volume has it."""
    with Volume.open(root) as volume:
        return FilesAtHand(volume).link(sha256, size, root / "taken")


def test_a_file_is_found_by_its_sha256_and_linked(root: Path) -> None:
    """The hard link takes no space, and the file's digests are known."""
    arrived = found(root)
    assert arrived is not None
    assert (arrived.sha256, arrived.size) == (SHA256, SHARED_FROM)
    assert (root / "taken").samefile(blob(root))


def _remove(path: Path) -> None:
    path.unlink()


def _alter(path: Path) -> None:
    path.write_bytes(bytes(SHARED_FROM))


def _cut(path: Path) -> None:
    os.truncate(path, 5)


def _replace_by_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


@pytest.mark.parametrize("change", [_remove, _alter, _cut, _replace_by_link])
def test_a_changed_blob_is_not_linked(root: Path, change: Callable[[Path], None]) -> None:
    """The file is downloaded instead."""
    change(blob(root))
    assert found(root) is None
    assert not (root / "taken").exists()


def test_an_altered_blob_is_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The blob is also removed, so that no other load reads it."""
    path = blob(root)
    _alter(path)
    found(root)
    assert f"the shared file {path.name} was altered; it is not used" in caplog.text
    assert not path.exists()


def test_a_receipt_that_lies_about_a_file_is_not_believed(root: Path) -> None:
    """Anyone who can write to the volume can write a receipt."""
    receipt = root / ".store" / OWNER.uid / HASH / RECEIPT_FILE
    receipt.write_text(receipt.read_text().replace(SHA256, "0" * 64))
    assert found(root, "0" * 64) is None
    assert blob(root).exists()


def test_a_blob_of_another_user_is_not_linked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other user could change this model's file with it."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert found(root) is None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with a repo whose UNet the volume has, and whose other files it does not have."""
    folder = write_repo(tmp_path / "repo")
    (folder / UNET).write_bytes(CONTENT)
    with FakeHub() as hub:
        hub.add_repo(REPO, folder)
        yield hub


def fetch_beside(root: Path, hub: FakeHub, into: Path, **fields: object) -> Fetched:
    """Fetch a repo into a folder of the volume. Files that the volume has are linked."""
    request = load_request(**{"model_type": "huggingface", "url": REPO, **fields})
    with Volume.open(root) as volume:
        settings = Settings(hub_endpoint=hub.url)
        return fetch(request, settings, into, at_hand=FilesAtHand(volume).link)


def test_a_second_model_downloads_only_what_the_volume_does_not_have(
    root: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the linked file, one byte is requested to check access. Only the rest needs space."""
    rest = sum(len(text) for name, text in NEEDED.items() if name != UNET)
    checked: list[int] = []
    monkeypatch.setattr(
        "sd_loader.source.hub_copy.ensure_space", lambda _, size: checked.append(size)
    )
    (into := root / "into").mkdir()
    fetched = fetch_beside(root, hub, into)
    assert hub.bytes_served == rest + 1
    assert checked[-1] <= rest
    assert fetched.files[f"repo/{UNET}"].sha256 == SHA256
    assert fetched.source.size_bytes == rest + SHARED_FROM
    assert (into / "repo" / UNET).samefile(blob(root))


def test_an_altered_file_is_downloaded(root: Path, hub: FakeHub) -> None:
    """The load does not fail because of another model's file."""
    _alter(blob(root))
    (into := root / "into").mkdir()
    fetch_beside(root, hub, into)
    assert (into / "repo" / UNET).read_bytes() == CONTENT


def test_a_file_at_hand_of_a_gated_repo_still_needs_access(tmp_path: Path, root: Path) -> None:
    """The Hub lists digests of gated repos for everyone. They give no right to the files."""
    folder = tmp_path / "gated"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CONTENT)
    (into := root / "into").mkdir()
    with FakeHub() as hub:
        hub.add_repo(REPO, folder, gated=True, token="hf_other")
        with pytest.raises(LoaderError) as caught:
            fetch_beside(root, hub, into, model_type="custom_ckpt", url=REPO)
    assert caught.value.reason is Reason.AUTHENTICATION_REQUIRED
