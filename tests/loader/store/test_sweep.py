"""A sweep finds and removes orphans and keeps all other files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sd_api.reasons import ExitCode
from sd_loader.store import removal
from sd_loader.store.blobs import SHARED_FROM
from sd_loader.store.publish import tidy
from sd_loader.store.volume import Volume
from sd_loader.sweep import sweep
from tests.support.store.sweeping import (
    OTHER_OWNER,
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
    NAMESAKE,
    NEW_HASH,
    OWNER,
    download,
    load,
    load_untidily,
    tree,
)

# --- orphans


def interrupted_download(volume: Volume) -> None:
    """A staging folder of a Pod that died, and whose load does not run again."""
    load(volume)
    download(volume, "pod", NEW_HASH)


def interrupted_removal(volume: Volume) -> None:
    """Trash of an interrupted removal, in both folders that may have some."""
    load(volume)
    with volume.make(".store", ".trash-uid-7") as folder:
        folder.write("owner.json", b"{}")
    volume.make(".store", "uid-1", f".trash-{NEW_HASH}").close()
    volume.make(".staging", ".trash-uid-7").close()


def superseded(volume: Volume) -> None:
    """A version that was superseded a day ago."""
    load(volume)
    load(volume, load_hash=NEW_HASH)


def taken_over(volume: Volume) -> None:
    """Files of a previous owner. The new owner's load died before it removed them."""
    load(volume)
    load_untidily(volume, NAMESAKE, HASH, MODEL_ID)


def no_receipt(volume: Volume) -> None:
    """A version without a receipt."""
    load(volume)
    volume.make(".store", "uid-1", "f" * 16).close()


def dangling(volume: Volume) -> None:
    """A link whose version a user removed by hand."""
    load(volume, OTHER_OWNER, model_id="other")
    volume.root.make_link(MODEL_ID, VERSION)


def leftovers(volume: Volume) -> None:
    """Temporary names of interrupted writes, links and probes."""
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
    (dangling, {MODEL_ID: "target does not exist"}),
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
    """Listing changes nothing. Published files stay. A second sweep finds nothing."""
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
def test_recent_files_are_not_orphans(
    volume: Volume, tmp_path: Path, make: Callable[[Volume], None]
) -> None:
    """Only trash, dangling links and superseded versions can be orphans within a day."""
    make(volume)
    at_once = ("/.trash-", MODEL_ID, VERSION) if make in {superseded, dangling} else ("/.trash-",)
    for path in found(tmp_path, later=timedelta(0)):
        assert any(word in path for word in at_once), path


def test_a_volume_without_orphans_has_no_findings(volume: Volume, tmp_path: Path) -> None:
    """Published, previous and released (Retain) versions and shared files are not orphans."""
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
    """A version is released if the user chose deletionPolicy Retain."""
    load(volume)
    removal.release(volume, OWNER)
    volume.root.unlink(MODEL_ID)
    assert swept(tmp_path).findings == ()


@pytest.mark.parametrize("make", [superseded, superseded_unrecorded])
def test_a_previous_version_is_kept_for_the_retention_period(
    volume: Volume, tmp_path: Path, make: Callable[[Volume], None]
) -> None:
    """The age is known even if no record states when the version was superseded."""
    make(volume)
    sweep(
        tmp_path,
        older_than=timedelta(0),
        retain=timedelta(days=100_000),
        now=datetime.now(UTC) + DAY,
        delete=True,
    )
    assert FILES.items() <= tree(tmp_path / VERSION).items()


def test_unused_blobs_are_removed(volume: Volume, tmp_path: Path) -> None:
    """Blobs that become unused because the sweep removes their versions are removed, too."""
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
        str(blob.relative_to(tmp_path)): "no model uses this file",
        MODEL_ID: "the link's target does not exist",
    }
    swept(tmp_path, delete=True)
    assert tree(tmp_path) == {}


def test_sizes_are_the_bytes_that_a_removal_frees(volume: Volume, tmp_path: Path) -> None:
    """Bytes that another model shares do not count."""
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
    """Return the bytes that all files of the volume occupy on disk, as `du` counts them."""
    files = {path.stat().st_ino: path.stat() for path in root.rglob("*") if path.is_file()}
    return sum(status.st_blocks * 512 for status in files.values())
