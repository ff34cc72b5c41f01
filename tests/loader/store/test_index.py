"""A namespace's list of models, for programs that have only the volume."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sd_api.card import Card
from sd_api.load import Owner
from sd_loader.errors import LoaderError
from sd_loader.store import index
from sd_loader.store.volume import Volume
from sd_loader.sweep import sweep
from tests.support.store.madeup import Parts, loaded, removed, request
from tests.support.store.volumes import (
    HASH,
    MODEL_ID,
    NEW_HASH,
    NOW,
    OWNER,
    load,
    load_untidily,
    remove,
    tree,
)

OTHER = Owner(uid="uid-9", namespace="other", name="x")


def listed(root: Path, namespace: str = "ns") -> list[dict[str, Any]]:
    """Return the models in a namespace's list. Without a list, return an empty one."""
    path = root / ".index" / f"{namespace}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    assert content["namespace"] == namespace
    return list(content["models"])


def swept(root: Path, *, delete: bool = True) -> list[str]:
    """Sweep the volume. Return the paths that the sweep reports."""
    hour = timedelta(hours=1)
    found = sweep(root, delete=delete, older_than=hour, retain=hour, now=NOW)
    return [finding.path for finding in found.findings]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Fake parts with a card."""
    parts = Parts.installed(monkeypatch)
    parts.card = Card(title="Pony", page="https://models.example.com/1?secret=x")
    return parts


@pytest.mark.usefixtures("parts")
def test_a_load_adds_the_model_to_the_list_and_a_removal_deletes_it(tmp_path: Path) -> None:
    """The list has the facts of the artifact and the card, and no url."""
    result = loaded(tmp_path)
    assert result.artifact is not None
    (model,) = listed(tmp_path)
    assert model == {
        "modelId": MODEL_ID,
        "immutablePath": f".store/{OWNER.uid}/{HASH}",
        "digest": result.artifact.digest,
        "sizeBytes": result.artifact.size_bytes,
        "files": result.artifact.files,
        "modelType": "custom_ckpt",
        "baseModel": "sd-1",
        "format": "diffusers",
        "card": {"title": "Pony"},
    }
    assert "://" not in (tmp_path / ".index/ns.json").read_text()
    assert (tmp_path / model["modelId"]).samefile(tmp_path / model["immutablePath"])
    removed(tmp_path)
    assert tree(tmp_path) == {}


@pytest.mark.usefixtures("parts")
def test_a_reload_and_a_rerun_write_the_list_again(tmp_path: Path) -> None:
    """A Pod that finds its version published also writes a list that a killed Pod did not write."""
    loaded(tmp_path)
    loaded(tmp_path, request(load_hash=NEW_HASH))
    assert [model["immutablePath"][-16:] for model in listed(tmp_path)] == [NEW_HASH]
    (tmp_path / ".index/ns.json").unlink()
    loaded(tmp_path, request(load_hash=NEW_HASH), pod="pod-2")
    assert len(listed(tmp_path)) == 1


def test_two_namespaces_on_one_volume_have_a_list_each(tmp_path: Path) -> None:
    """A change in one namespace does not rewrite the other's list."""
    with Volume.open(tmp_path) as volume:
        load(volume, OWNER, model_id="mine")
        load(volume, OTHER, model_id="theirs")
        before = (tmp_path / ".index/other.json").stat().st_mtime_ns
        load(volume, Owner(uid="uid-8", namespace="ns", name="more"), model_id="more")
    assert [model["modelId"] for model in listed(tmp_path)] == ["mine", "more"]
    assert [model["modelId"] for model in listed(tmp_path, "other")] == ["theirs"]
    assert (tmp_path / ".index/other.json").stat().st_mtime_ns == before


def test_twenty_pods_that_publish_and_remove_at_once_leave_a_true_list(tmp_path: Path) -> None:
    """Each Pod reads the volume again after it writes the list, so the last list is complete."""

    def work(number: int) -> None:
        namespace = "ns" if number % 2 else "other"
        owner = Owner(uid=f"uid-{number}", namespace=namespace, name=f"m{number}")
        with Volume.open(tmp_path) as volume:
            load(volume, owner, model_id=owner.name)
            if number % 4 < 2:
                remove(volume, owner, owner.name)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    left = {number for number in range(20) if number % 4 >= 2}
    for namespace, odd in (("ns", 1), ("other", 0)):
        names = {model["modelId"] for model in listed(tmp_path, namespace)}
        assert names == {f"m{number}" for number in left if number % 2 == odd}
    assert not (tmp_path / ".staging").exists()


def test_a_change_while_the_list_is_written_is_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of two Pods must not replace a new list with an old one."""
    write = index._write
    late = iter(["late", "later"])

    def write_beside_others(volume: Volume, *arguments: Any) -> None:
        if name := next(late, None):
            owner = Owner(uid=f"uid-{name}", namespace="ns", name=name)
            load_untidily(volume, owner, HASH, name)
        write(volume, *arguments)

    monkeypatch.setattr(index, "_write", write_beside_others)
    with Volume.open(tmp_path) as volume:
        load(volume)
    assert [model["modelId"] for model in listed(tmp_path)] == ["late", "later", MODEL_ID]


def test_a_sweep_knows_the_lists_and_repairs_them(tmp_path: Path) -> None:
    """A sweep writes missing lists, and removes the list of a namespace without models."""
    with Volume.open(tmp_path) as volume:
        load(volume)
    (tmp_path / ".index/ns.json").unlink()
    (tmp_path / ".index/gone.json").write_text("{}")
    assert swept(tmp_path, delete=False) == []
    assert listed(tmp_path) == []
    assert swept(tmp_path) == []
    assert [model["modelId"] for model in listed(tmp_path)] == [MODEL_ID]
    assert not (tmp_path / ".index/gone.json").exists()


def test_other_files_among_the_lists_are_foreign(tmp_path: Path) -> None:
    """A sweep reports and keeps files in `.index` that are not lists.

    If a symlink has the name of a list, a dry run reports it, and a sweep that deletes replaces
    it by the list.
    """
    with Volume.open(tmp_path) as volume:
        load(volume)
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / ".index/ns.json").unlink()
    (tmp_path / ".index/ns.json").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".index/notes.txt").write_text("x")
    assert swept(tmp_path, delete=False) == ["elsewhere", ".index/notes.txt", ".index/ns.json"]
    swept(tmp_path)
    assert len(listed(tmp_path)) == 1
    assert (tmp_path / "elsewhere").read_text() == "kept"


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("error", [OSError(28, "full"), LoaderError("VolumeNotWritable", "no")])
def test_a_load_succeeds_although_its_list_cannot_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """The log says which list is out of date, and until when."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(index, "_write", fail)
    assert loaded(tmp_path).outcome == "loaded"
    assert ".index/ns.json on the volume is out of date until" in caplog.text


def test_a_model_without_a_readable_receipt_or_owner_is_not_listed(tmp_path: Path) -> None:
    """Anyone who can write to the volume can write these files, and links of other names."""
    with Volume.open(tmp_path) as volume:
        for number in range(3):
            owner = Owner(uid=f"uid-{number}", namespace="ns", name=f"m{number}")
            load(volume, owner, model_id=owner.name)
        (tmp_path / ".store/uid-0/owner.json").write_text("[" * 5000)
        (tmp_path / ".store/uid-1" / HASH / ".sd-receipt.json").write_text('{"files": 1}')
        (tmp_path / "other-name").symlink_to(f".store/uid-2/{HASH}")
        index.refresh(volume, "uid-2", "ns")
    assert [model["modelId"] for model in listed(tmp_path)] == ["m2"]
