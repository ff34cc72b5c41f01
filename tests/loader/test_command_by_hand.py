"""The commands for people: `load` with its options, `inspect` and `--version`."""

from __future__ import annotations

import contextlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from devkit.ldm_layouts import sd15_shapes
from devkit.tiny import SMALLEST_SD15, write_checkpoint
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


def test_load_accepts_a_local_file(containers: Containers, checkpoint: Path) -> None:
    """The command prints the folder's path on stdout and messages on stderr.

    The message of a second load of the file states how much it shares with the first.
    """
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


def test_terminal_shows_a_progress_bar_and_then_the_result(
    containers: Containers, checkpoint: Path
) -> None:
    """The result replaces the bar."""
    terminal, stderr = os.openpty()
    arguments = ("--model-id", "m", "--store", containers.store)
    process = containers.start("load", "--url", checkpoint, *arguments, stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # reading a closed terminal fails
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    containers.end(process)
    assert "━".encode() in shown
    assert f"{CLEAR_LINE}loaded custom_ckpt, sd-1, StableDiffusionPipeline, ".encode() in shown


def test_changed_local_file_is_loaded_again(containers: Containers, tmp_path: Path) -> None:
    """An unchanged file gives the result from the receipt."""
    path = tmp_path / "tiny.safetensors"
    arguments = ("load", "--url", path, "--model-id", "m", "--store", containers.store)
    digests = []
    for seed in (0, 0, 1):
        if len(digests) != 1:
            write_checkpoint(path, sd15_shapes(SMALLEST_SD15), seed=seed)
        digests.append(artifact_of(containers.run(*arguments)).digest)
    assert digests[0] == digests[1] != digests[2]


def test_load_options_supply_the_prediction_type(
    containers: Containers, checkpoint: Path, tmp_path: Path
) -> None:
    """The value comes from an option or from a local original config.

    A changed config is read again.
    """
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
def test_load_has_an_option_for_each_load_field(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every field of LoadFields appears in the help of `load`."""
    with pytest.raises(SystemExit):
        main(["load", "--help"])
    assert f"--{field.replace('_', '-')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("no/such/file.ckpt", "is not a file", id="missing"),
        pytest.param("/proc/self/mem", "cannot be read", id="unreadable"),
        pytest.param("a" * 300, "cannot be read: File name too long", id="name too long"),
    ],
)
def test_unreadable_local_file_is_named(containers: Containers, path: str, message: str) -> None:
    """The load fails with a message that says why the path cannot be read."""
    arguments = ("--model-type", "custom_ckpt", "--model-id", "m", "--store", containers.store)
    failed(containers.run("load", "--url", path, *arguments), Reason.SOURCE_NOT_FOUND, message)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/model.ckpt", "spec.url is in an object store"),
        ("org/name:fp16", "spec.url has a tag after the repo id; give ORG/NAME, a precision"),
        ("https://civitai.com/images/1", "spec.url is a page of Civitai, but not of a model"),
        ("huggingface.co/org/name/tree/main/vae", "spec.url is a folder of a repo, or a branch"),
        (
            "https://example.com/a b",
            "spec.url is an http(s) link with a blank in it; write the blank as %20",
        ),
    ],
)
def test_url_of_another_form_is_refused_with_the_right_form(
    containers: Containers, hub: FakeHub, url: str, message: str
) -> None:
    """The words are those of the operator and of the CRD's rules."""
    arguments = ("--model-id", "m", "--store", containers.store)
    failed(containers.run("load", "--url", url, *arguments), Reason.INVALID_SPEC, message)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("org/nothing", "org/nothing at main: the repo does not", id="repo"),
        pytest.param("org/nothing@v2", "org/nothing at v2: the repo does not", id="revision"),
        pytest.param("hf://org/nothing", "org/nothing at main: the repo does not", id="hf"),
        pytest.param(" hf.co/org/nothing ", "org/nothing at main: the repo does", id="page"),
        pytest.param("http://hf.co/org/nothing/tree/v2", "org/nothing at v2: the repo", id="tree"),
    ],
)
def test_url_of_a_repo_is_looked_up_on_the_hub(
    containers: Containers, url: str, message: str
) -> None:
    """A url that means a repo is not taken for a local file."""
    arguments = ("--model-id", "m", "--store", containers.store)
    failed(containers.run("load", "--url", url, *arguments), Reason.SOURCE_NOT_FOUND, message)


def test_request_cannot_load_a_local_file(containers: Containers, checkpoint: Path) -> None:
    """A request from the operator must not read the node's files."""
    request = load_request(str(checkpoint), model_type="custom_ckpt")
    ended = containers.load(request)
    assert ended.code == ExitCode.PERMANENT
    assert list(containers.store.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-id", "../x"), "--model-id: must be 1 to 63 letters"),
        (("--model-id", "m", "--sha256", "abc"), "--sha256: must be 64 digits of lower-case hex"),
    ],
)
def test_load_names_the_invalid_argument(
    containers: Containers, checkpoint: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Arguments are validated like the fields of the spec."""
    ended = containers.run("load", "--url", checkpoint, "--store", containers.store, *arguments)
    failed(ended, Reason.INVALID_SPEC, message)


def test_inspect_describes_a_file(containers: Containers, checkpoint: Path) -> None:
    """The output is text, or JSON with `--json`."""
    ended = containers.run("inspect", checkpoint)
    assert ended.code == ExitCode.DONE, ended.stderr
    assert "base model: sd-1\nvariant:    normal\n" in ended.stdout
    found = json.loads(containers.run("inspect", checkpoint, "--json").stdout)
    assert found["format"] == "safetensors"
    assert (found["baseModel"], found["variant"]) == ("sd-1", "normal")
    assert found["precision"] == "fp16"
    assert found["tensors"] > 600


def test_inspect_reports_why_a_file_is_refused(containers: Containers, tmp_path: Path) -> None:
    """The reason and exit code are those of a load."""
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>")
    ended = containers.run("inspect", tmp_path / "page.safetensors")
    failed(ended, Reason.NOT_A_MODEL, "an HTML page")
    remedy = "Give the path of a file that exists and that you may read."
    ended = containers.run("inspect", tmp_path / "none")
    failed(ended, Reason.SOURCE_NOT_FOUND, "none", remedy)


def test_version_is_that_of_the_package(containers: Containers) -> None:
    """`--version` prints the package's version."""
    assert containers.run("--version").stdout == f"{version('sd-operator')}\n"
