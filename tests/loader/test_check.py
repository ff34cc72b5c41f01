"""The command `check`: which published versions are missing, and which cannot be compared."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sd_api.check import VERSIONS_MAX, CheckedVersion, CheckRequest, CheckResult
from sd_api.names import RECEIPT_FILE
from sd_api.reasons import Reason
from sd_loader.check import check
from sd_loader.store.folder import Folder
from sd_loader.store.volume import Volume
from tests.support.loader.loadercli import Containers, failed
from tests.support.store.volumes import HASH, MODEL_ID, NEW_HASH, OWNER, load, tree

FILE = "unet/config.json"
COMPLETE = CheckResult(outcome="checked")
MISSING = CheckResult(outcome="checked", missing=(0,))
UNREADABLE = CheckResult(outcome="checked", unreadable=(0,))
EMPTY = CheckResult(outcome="empty")


def version(
    uid: str = OWNER.uid, load_hash: str = HASH, model_id: str = MODEL_ID
) -> CheckedVersion:
    """Return a version as a CheckRequest of the operator names it."""
    return CheckedVersion(uid=uid, load_hash=load_hash, model_id=model_id)


def checked(root: Path, *versions: CheckedVersion) -> CheckResult:
    """Check versions, by default the one that `load` publishes."""
    return check(CheckRequest(versions=versions or (version(),)), root, print)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a published version, on the volume `tmp_path`."""
    with Volume.open(tmp_path) as volume:
        load(volume)
    return tmp_path / ".store" / OWNER.uid / HASH


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace a file's content."""
    path.write_bytes(change(path.read_bytes()))


def replace_by_link(path: Path) -> None:
    """Move a file or folder away, and put a link to it in its place."""
    moved = path.rename(path.with_name("moved"))
    path.symlink_to(moved.name)


def load_again(folder: Path) -> None:
    """Publish another version of the model."""
    with Volume.open(folder.parents[2]) as volume:
        load(volume, load_hash=NEW_HASH)


def test_a_complete_version_is_not_reported(folder: Path) -> None:
    """The check changes nothing on the volume."""
    root = folder.parents[2]
    before = tree(root)
    assert checked(root) == COMPLETE
    assert tree(root) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(shutil.rmtree, id="the folder is removed"),
        pytest.param(lambda folder: shutil.rmtree(folder.parent), id="all versions are removed"),
        pytest.param(lambda folder: folder.rename(folder.with_name("x")), id="it is renamed"),
        pytest.param(replace_by_link, id="the folder is a link"),
        pytest.param(lambda folder: (folder / FILE).unlink(), id="a file is removed"),
        pytest.param(lambda folder: shutil.rmtree(folder / "unet"), id="a subfolder is removed"),
        pytest.param(
            lambda folder: rewrite(folder / FILE, lambda content: content[:-1]), id="a file is cut"
        ),
        pytest.param(
            lambda folder: rewrite(folder / FILE, lambda _: b""), id="a file has no content"
        ),
        pytest.param(
            lambda folder: rewrite(folder / FILE, lambda content: content + b"x"),
            id="a file is longer",
        ),
        pytest.param(lambda folder: replace_by_link(folder / FILE), id="a file is a link"),
        pytest.param(lambda folder: (folder / RECEIPT_FILE).unlink(), id="no receipt"),
        pytest.param(
            lambda folder: rewrite(folder / RECEIPT_FILE, lambda content: content[:50]),
            id="the receipt is cut",
        ),
        pytest.param(
            lambda folder: rewrite(folder / RECEIPT_FILE, lambda content: bytes(len(content))),
            id="the receipt is zeros",
        ),
        pytest.param(
            lambda folder: rewrite(
                folder / RECEIPT_FILE, lambda content: content.replace(HASH.encode(), b"f" * 16)
            ),
            id="another version's receipt",
        ),
        pytest.param(lambda folder: (folder.parents[2] / MODEL_ID).unlink(), id="no link"),
        pytest.param(load_again, id="the link leads to another version"),
    ],
)
def test_a_version_that_is_not_complete_is_missing(
    folder: Path, damage: Callable[[Path], object]
) -> None:
    """Readers that open the model under its id do not find what the status promises."""
    damage(folder)
    assert checked(folder.parents[2]) == MISSING


def test_a_receipt_of_a_newer_loader_is_not_missing(folder: Path) -> None:
    """An operator that is set back to an earlier version must not report every model."""
    rewrite(folder / RECEIPT_FILE, lambda _: json.dumps({"later": 1}).encode())
    assert checked(folder.parents[2]) == UNREADABLE


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("operation", ["open_folder", "read", "file_size", "link_target"])
def test_a_version_that_cannot_be_read_is_not_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    """A storage server that does not answer has not lost the files. Other versions are checked."""
    original = getattr(Folder, operation)
    calls = []

    def fail_once(self: Folder, *args: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(code, "the server does not answer")
        return original(self, *args)

    monkeypatch.setattr(Folder, operation, fail_once)
    found = checked(folder.parents[2], version(), version())
    assert found == UNREADABLE
    assert len(calls) > 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(shutil.rmtree, id="removed"),
        pytest.param(replace_by_link, id="a link"),
        pytest.param(lambda store: (shutil.rmtree(store), store.touch()), id="a file"),
    ],
)
def test_a_volume_without_store_is_empty(folder: Path, damage: Callable[[Path], object]) -> None:
    """Most likely another volume is mounted, so nothing is reported about the models."""
    damage(folder.parents[1])
    assert checked(folder.parents[2]) == EMPTY


def test_a_thousand_models_are_checked_in_batches(tmp_path: Path) -> None:
    """Each result names exactly the versions that are missing, and fits its limit."""
    with Volume.open(tmp_path) as volume:
        receipt = load(volume, files={"file": b"x"})
    versions = [version(f"uid-{number}", model_id=f"m{number}") for number in range(1000)]
    for one in versions:
        folder = tmp_path / ".store" / one.uid / HASH
        folder.mkdir(parents=True, exist_ok=True)
        own = receipt.model_copy(update={"uid": one.uid})
        (folder / RECEIPT_FILE).write_text(own.encode())
        (folder / "file").write_bytes(b"x")
        (tmp_path / one.model_id).symlink_to(folder.relative_to(tmp_path))
    for number in range(0, 1000, 7):
        (tmp_path / ".store" / f"uid-{number}" / HASH / "file").unlink()
    missing = []
    for start in range(0, 1000, VERSIONS_MAX):
        batch = tuple(versions[start : start + VERSIONS_MAX])
        request = CheckRequest.from_argument(CheckRequest(versions=batch).to_argument())
        result = CheckResult.decode(check(request, tmp_path, print).encode())
        assert result is not None
        missing += [start + position for position in result.missing]
    assert missing == list(range(0, 1000, 7))


def test_the_container_reports_its_result(folder: Path, tmp_path: Path) -> None:
    """The log names what is missing; the termination message has the versions' positions."""
    (folder / FILE).unlink()
    containers = Containers(tmp_path, tmp_path / "container")
    request = CheckRequest(versions=(version(), version(load_hash=NEW_HASH)))
    process = containers.start(
        "check", "--request", request.to_argument(), "--store", str(tmp_path)
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    text = containers.message("pod").read_text()
    assert CheckResult.decode(text) == CheckResult(outcome="checked", missing=(0, 1))
    assert stdout.splitlines() == [
        f".store/uid-1/{HASH}: {FILE} is missing or cut off",
        f".store/uid-1/{NEW_HASH}: the link {MODEL_ID} is missing or cut off",
    ]


def test_a_check_without_a_volume_fails(tmp_path: Path) -> None:
    """The operator then learns nothing about the models."""
    containers = Containers(tmp_path / "none", tmp_path / "container")
    request = CheckRequest(versions=(version(),))
    arguments = ("--request", request.to_argument(), "--store", str(containers.store))
    failed(containers.run("check", *arguments), Reason.VOLUME_NOT_WRITABLE, "cannot open")
