"""Tests of the list of published models that no resource names."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from sd_operator.standalone import published
from sd_operator.standalone.podrun import Machine
from sd_operator.standalone.published import Published

UID = "0ea1cc85-b607-4e0a-9b41-2338bffcd4bf"
CLAIMS = {("default", "models"), ("team", "disk")}
OWNER = {"uid": UID, "namespace": "default", "name": "sd15"}


def publish(folder: Path, model_id: str = "sd15", record: object = None, **owner: object) -> Path:
    """Publish a model as the loader does, without its files; return the path of its record."""
    home = folder / ".store" / UID
    version = home / ("0" * 16)
    version.mkdir(parents=True, exist_ok=True)
    path = home / "owner.json"
    path.write_text(json.dumps({"owner": OWNER | owner} if record is None else record))
    (folder / model_id).symlink_to(f".store/{UID}/{'0' * 16}")
    return path


def on(store: Path) -> list[Published]:
    """Return the models on all PVCs of a store."""
    machine = Machine(store, store.parent / "state", store.parent / "logs")
    folders = machine.claim_folders()
    return [model for claim, folder in folders for model in published.on_claim(claim, folder)]


def test_models_of_all_pvcs_are_found(tmp_path):
    """Models are found on the main PVC, which is the store, and on PVCs with folders in it."""
    publish(tmp_path)
    publish(tmp_path / ".claims/team/disk", "My-Model", namespace="team", name="m")

    assert sorted(on(tmp_path)) == [
        Published("default", "sd15", "sd15", "models"),
        Published("team", "m", "My-Model", "disk"),
    ]


def test_only_models_that_a_resource_can_adopt_are_listed(tmp_path):
    """Models that were loaded by hand, and files that are not models, are left out."""
    publish(tmp_path, namespace="local")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "foreign").symlink_to("folder")
    (tmp_path / "gone").symlink_to(f".store/other/{'0' * 16}")

    assert on(tmp_path) == []
    assert on(tmp_path / "missing") == []


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("x", id="text"),
        pytest.param({}, id="no-owner"),
        pytest.param({"owner": OWNER | {"name": "a'; rm -rf /;'"}}, id="shell"),
        pytest.param({"owner": OWNER | {"name": "\x1b[31m"}}, id="terminal"),
        pytest.param({"owner": OWNER | {"name": 5}}, id="number"),
    ],
)
def test_record_that_is_not_valid_is_ignored(tmp_path, record):
    """A model with an invalid record is not listed.

    The names in the record become part of the shell command that the user is shown.
    """
    publish(tmp_path, record=record)

    assert on(tmp_path) == []


def test_record_that_is_not_a_file_is_ignored(tmp_path):
    """A model whose record is a FIFO or a link is not listed."""
    path = publish(tmp_path)
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert on(tmp_path) == []
    path.unlink()
    os.mkfifo(path)
    assert on(tmp_path) == []


def test_pvc_with_a_name_that_a_shell_reads_is_ignored(tmp_path):
    """A folder whose name no PVC can have, because a shell would read it, is not listed."""
    publish(tmp_path / ".claims/default/$(id)")

    assert on(tmp_path) == []


def test_command_creates_the_resource_that_the_record_names():
    """Only the url is left to fill in. Fields that have their default value are left out."""
    plain = Published("default", "sd15", "sd15", "models").command(CLAIMS)
    other = Published("team", "m", "My-Model", "disk").command(CLAIMS)

    words = shlex.split(plain)
    assert words[0] == "echo"
    assert " ".join(words[2:]) == "| kubectl apply -n default -f -"
    manifest = json.loads(words[1])
    assert manifest["metadata"] == {"name": "sd15"}
    assert manifest["spec"] == {"url": "URL"}
    assert json.loads(shlex.split(other)[1])["spec"] == {
        "url": "URL",
        "modelId": "My-Model",
        "storage": {"claimName": "disk"},
    }


def test_command_also_creates_a_missing_namespace_and_pvc():
    """The command creates a namespace and a PVC that the resource needs and that do not exist."""
    command = Published("team", "m", "m", "disk").command(claims=set())

    listed = json.loads(shlex.split(command)[1])
    namespace, claim, model = listed["items"]
    assert listed["kind"] == "List"
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", "team")
    assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", "disk")
    assert claim["metadata"]["labels"] == {"sd-operator.dev/models": "true"}
    assert model["metadata"] == {"name": "m"}


def test_message_lists_the_models_without_a_resource():
    """The first ten have a command each; nothing is printed if every model has a resource."""
    models = [Published("default", f"m{number:02}", "x", "models") for number in range(13)]

    text = published.message(models, {("default", "m00"), ("other", "m01")}, CLAIMS)

    assert text.startswith("No resource names these published models (12):\n  default/m01\n")
    assert text.count("kubectl apply") == 10
    assert "  and 2 more\n" in text
    assert published.message(models[:1], {("default", "m00")}, CLAIMS) == ""
