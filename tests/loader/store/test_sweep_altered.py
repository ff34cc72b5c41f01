"""A sweep finds altered and foreign files; its command line reports them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sd_api.names import RECEIPT_FILE
from sd_api.reasons import ExitCode, Reason
from sd_loader.store.volume import Volume
from sd_loader.sweep import FindingKind
from tests.support.loader.loadercli import Containers, failed
from tests.support.store.sweeping import OTHER_OWNER, VERSION, WEIGHTS, found, swept
from tests.support.store.volumes import HASH, MODEL_ID, NEW_HASH, download, load, tree

# --- altered and foreign files


def shortened(version: Path) -> str:
    """Truncate a file, and return its path in the version."""
    os.truncate(version / "vae/weights", 5)
    return "vae/weights"


def missing(version: Path) -> str:
    """Remove a file, and return its path."""
    (version / "unet/config.json").unlink()
    return "unet/config.json"


def made_a_link(version: Path) -> str:
    """Put a link in place of a file, and return its path."""
    (version / "unet/config.json").unlink()
    (version / "unet/config.json").symlink_to("/etc/passwd")
    return "unet/config.json"


def added(version: Path) -> str:
    """Add a file, and return its path."""
    (version / "more.py").write_text("print()")
    return "more.py"


def added_link(version: Path) -> str:
    """Add a link to a folder, and return its path."""
    (version / "more").symlink_to("/etc")
    return "more"


def without_receipt(version: Path) -> str:
    """Remove the receipt, and return its path."""
    (version / RECEIPT_FILE).unlink()
    return RECEIPT_FILE


def without_owner(version: Path) -> str:
    """Make the owner record unreadable, and return its path."""
    (version.parent / "owner.json").write_text("{")
    return "../owner.json"


def without_lists(state: Mapping[str, object]) -> dict[str, object]:
    """Return a volume's content without the lists of models, which a sweep may write."""
    return {path: content for path, content in state.items() if not path.startswith(".index")}


@pytest.mark.parametrize(
    "alter",
    [shortened, missing, made_a_link, added, added_link, without_receipt, without_owner],
)
def test_altered_files_are_reported_and_never_removed(
    volume: Volume, tmp_path: Path, alter: Callable[[Path], str]
) -> None:
    """The exit code shows that a person must act."""
    load(volume, files=WEIGHTS)
    path = os.path.normpath(f"{VERSION}/{alter(tmp_path / VERSION)}")
    before = without_lists(tree(tmp_path))
    result = swept(tmp_path, delete=True)
    assert [(one.kind, one.path) for one in result.findings] == [(FindingKind.ALTERED, path)]
    assert result.exit_code is ExitCode.PERMANENT
    assert "1 file was altered. To repair a model, load it again" in result.to_text()
    assert without_lists(tree(tmp_path)) == before


def test_digests_find_altered_bytes_in_all_models_that_share_them(
    volume: Volume, tmp_path: Path
) -> None:
    """Every model with the altered file is reported. Without --digests only sizes are compared."""
    load(volume, files=WEIGHTS)
    load(volume, OTHER_OWNER, model_id="other", files=WEIGHTS)
    with (tmp_path / MODEL_ID / "vae/weights").open("r+b") as file:
        file.write(b"x")
    assert swept(tmp_path).findings == ()
    assert found(tmp_path, FindingKind.ALTERED, digests=True) == {
        f"{VERSION}/vae/weights": "its content changed after it was published",
        f".store/uid-3/{HASH}/vae/weights": "its content changed after it was published",
    }


def test_foreign_files_are_listed_and_kept(volume: Volume, tmp_path: Path) -> None:
    """Foreign files belong to a user and do not change the exit code."""
    load(volume, files=WEIGHTS)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "current").symlink_to(outside)
    (tmp_path / ".store/planted").symlink_to(outside)
    (tmp_path / ".store/a b").mkdir()
    (tmp_path / ".blobs/blake3/notes").write_text("mine")
    before = tree(tmp_path)
    result = swept(tmp_path, delete=True)
    assert {one.path for one in result.findings if one.kind is FindingKind.FOREIGN} == {
        "current",
        "lost+found",
        "notes.txt",
        ".store/planted",
        ".store/a b",
        ".blobs/blake3/notes",
    }
    assert result.exit_code is ExitCode.DONE
    assert tree(tmp_path) == before


def test_planted_links_are_not_followed(volume: Volume, tmp_path: Path) -> None:
    """Files outside the volume stay unchanged when links are removed."""
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


def test_an_orphan_that_cannot_be_removed_is_reported(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code asks for another try."""
    load(volume)
    volume.make(".store", ".trash-uid-7").close()

    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", busy)
    result = swept(tmp_path, delete=True)
    assert result.exit_code is ExitCode.TRY_AGAIN
    assert "cannot be removed: Device or resource busy" in result.to_text()
    assert "could not be removed: fix the cause" in result.to_text()


# --- the command


def test_the_command_line(tmp_path: Path) -> None:
    """Text output has a line per finding and advice. JSON output has an object per line."""
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
        "foreign             no?[31mtes: the loader did not create it; it is kept",
        "Found 1 orphan, 5.0 MB in total. Run sweep with --delete to free this space.",
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
    assert removed.stdout.splitlines()[-1] == "Removed 2 orphans and freed 5.0 MB."
    assert not (containers.store / ".staging").exists()
    assert containers.run(*command, "--delete").stdout.splitlines()[-1] == "Nothing to do."

    (containers.store / MODEL_ID / "model_index.json").write_text("[]")
    altered = containers.run(*command, "--digests")
    assert altered.code == ExitCode.PERMANENT
    assert "sd-operator.dev/reload" in altered.stdout.splitlines()[-1]


def test_a_missing_volume_is_reported(tmp_path: Path) -> None:
    """The sweep reports a missing volume in the same way as the other commands."""
    containers = Containers(tmp_path / "none", tmp_path / "container")
    failed(
        containers.run("sweep", "--store", containers.store),
        Reason.VOLUME_NOT_WRITABLE,
        "cannot open the volume at",
    )


@pytest.mark.parametrize("hours", ["x", "-1", "nan", "1e9"])
def test_an_invalid_age_is_refused(tmp_path: Path, hours: str) -> None:
    """The command fails before it reads the volume."""
    containers = Containers(tmp_path, tmp_path / "container")
    ended = containers.run("sweep", "--store", tmp_path, f"--older-than={hours}")
    assert ended.code == 2
    assert "--older-than" in ended.stderr
