"""The loader's commands for people: `load` with its options, `inspect`, `--version`."""

from __future__ import annotations

import contextlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest

from devkit.tiny import write_checkpoint
from sd_api.reasons import ExitCode, Reason
from sd_api.spec import LoadFields
from sd_loader.__main__ import main
from sd_loader.progress import CLEAR_LINE
from tests.support.loader.loadercli import (
    Containers,
    artifact_of,
    failed,
    load_request,
)


def test_load_by_hand_takes_a_local_file(containers: Containers, checkpoint: Path) -> None:
    """People give a path, and get the folder's path on stdout and words on stderr."""
    arguments = ("--model-id", "Mine", "--revision", "fp32", "--store", containers.store)
    ended = containers.run("load", "--url", checkpoint, *arguments)
    assert artifact_of(ended).precision == "fp32"
    assert ended.stdout == f"{containers.store}/Mine\n"
    assert "Converting" in ended.stderr
    assert (containers.store / "Mine/model_index.json").exists()
    assert checkpoint.exists()
    assert "shared" not in ended.stderr

    again = containers.run("load", "--url", checkpoint, *arguments[2:], "--model-id", "Copy")
    assert artifact_of(again).shared_bytes > 0
    assert "MB of it shared with other models" in again.stderr


def test_a_terminal_gets_a_bar_and_then_the_result_in_its_place(
    containers: Containers, checkpoint: Path
) -> None:
    """The bar is gone when the words come."""
    terminal, stderr = os.openpty()
    arguments = ("--model-id", "m", "--store", containers.store)
    process = containers.start("load", "--url", checkpoint, *arguments, stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that it was closed
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    containers.end(process)
    assert b"[#" in shown
    assert f"{CLEAR_LINE}loaded 12 files".encode() in shown


def test_a_local_file_that_changed_is_loaded_again(containers: Containers, tmp_path: Path) -> None:
    """The same file answers from the receipt, a changed one does not."""
    path = tmp_path / "tiny.safetensors"
    arguments = ("load", "--url", path, "--model-id", "m", "--store", containers.store)
    digests = []
    for seed in (0, 0, 1):
        if len(digests) != 1:
            write_checkpoint(path, seed=seed)
        digests.append(artifact_of(containers.run(*arguments)).digest)
    assert digests[0] == digests[1] != digests[2]


def test_load_by_hand_takes_what_the_file_does_not_say(
    containers: Containers, checkpoint: Path, tmp_path: Path
) -> None:
    """An option, or the original config from a file, which is read again when it was changed."""
    config = tmp_path / "config.yaml"
    arguments = ("load", "--url", checkpoint, "--model-id", "mine", "--store", containers.store)

    def predicts(*more: str | Path) -> str:
        assert containers.run(*arguments, *more).code == 0
        path = containers.store / "mine/scheduler/scheduler_config.json"
        return str(json.loads(path.read_text())["prediction_type"])

    config.write_text("model: {params: {parameterization: v}}")
    assert predicts("--original-config", config) == "v_prediction"
    config.write_text("model: {params: {parameterization: eps}}")
    assert predicts("--original-config", config) == "epsilon"
    assert predicts("--prediction-type", "v_prediction") == "v_prediction"


@pytest.mark.parametrize("field", LoadFields.model_fields)
def test_load_has_an_option_for_each_load_affecting_field(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A field that is added to the spec can be used by hand, too."""
    with pytest.raises(SystemExit):
        main(["load", "--help"])
    assert f"--{field.replace('_', '-')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("no/such/file.ckpt", "is not a file", id="missing"),
        pytest.param("/proc/self/mem", "cannot be read", id="unreadable"),
        pytest.param("a" * 300, "cannot be read: File name too long", id="no file's name"),
    ],
)
def test_a_local_file_that_cannot_be_read_is_named(
    containers: Containers, path: str, message: str
) -> None:
    """A mistyped path is no crash."""
    arguments = ("--model-type", "custom_ckpt", "--model-id", "m", "--store", containers.store)
    failed(containers.run("load", "--url", path, *arguments), Reason.SOURCE_NOT_FOUND, message)


def test_only_people_may_load_local_files(containers: Containers, checkpoint: Path) -> None:
    """A request of the operator reads no files of the node."""
    request = load_request(str(checkpoint), model_type="custom_ckpt")
    ended = containers.load(request)
    assert ended.code == ExitCode.PERMANENT
    assert list(containers.store.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-id", "../x"), "model_id: String should match"),
        (("--model-id", "m", "--sha256", "abc"), "sha256: String should match"),
    ],
)
def test_load_names_the_wrong_argument(
    containers: Containers, checkpoint: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Arguments are checked as the spec's fields are."""
    ended = containers.run("load", "--url", checkpoint, "--store", containers.store, *arguments)
    failed(ended, Reason.INVALID_SPEC, message)


def test_inspect_says_what_a_file_is(containers: Containers, checkpoint: Path) -> None:
    """For people as text, for programs as JSON."""
    ended = containers.run("inspect", checkpoint)
    assert ended.code == ExitCode.DONE, ended.stderr
    assert "base model: sd1" in ended.stdout
    found = json.loads(containers.run("inspect", checkpoint, "--json").stdout)
    assert found["format"] == "safetensors"
    assert found["baseModel"] == "sd1"
    assert found["precision"] == "fp16"
    assert found["tensors"] > 600


def test_inspect_says_why_a_file_is_refused(containers: Containers, tmp_path: Path) -> None:
    """With the exit code of a load that would be refused."""
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>")
    ended = containers.run("inspect", tmp_path / "page.safetensors")
    failed(ended, Reason.NOT_A_MODEL, "an HTML page")
    failed(containers.run("inspect", tmp_path / "none"), Reason.SOURCE_NOT_FOUND, "none")


def test_version(containers: Containers) -> None:
    """The package's version."""
    assert containers.run("--version").stdout == f"{version('sd-operator')}\n"
