"""The commands `list` and `verify`, the help, and what `load` reports about its store."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_api.reasons import ExitCode, Reason
from sd_loader import arguments
from sd_loader.__main__ import main
from tests.support.loader.loadercli import Containers, artifact_of, failed

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def loaded(containers: Containers, checkpoint: Path) -> Containers:
    """A store with one model, `mine`."""
    artifact_of(load(containers, checkpoint))
    return containers


def load(containers: Containers, url: str | Path, store: Path | None = None):
    """Load a model by hand."""
    return containers.run(
        "load", "--url", url, "--model-id", "mine", "--store", store or containers.store
    )


def test_load_says_what_it_published_and_how_to_open_it(
    containers: Containers, checkpoint: Path
) -> None:
    """Stdout has only the path, for scripts."""
    ended = load(containers, checkpoint)
    assert ended.stdout == f"{containers.store}/mine\n"
    assert "loaded custom_ckpt, sd-1, StableDiffusionPipeline, fp16, 12 files, " in ended.stderr
    code = ended.stderr[ended.stderr.index("    import os") :]
    assert f'    folder = os.path.realpath("{containers.store}/mine")\n' in code
    assert "StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)" in code


def test_list_shows_the_published_models(loaded: Containers) -> None:
    """The output is a table, or one JSON object per line with `--json`."""
    table = loaded.run("list", "--store", loaded.store)
    assert table.code == ExitCode.DONE, table.stderr
    heading, row = table.stdout.splitlines()
    columns = "MODEL BASE VARIANT PIPELINE PRECISION SIZE FILES DIGEST"
    assert heading.split() == columns.split()
    assert row.split()[:5] == ["mine", "sd-1", "normal", "StableDiffusionPipeline", "fp16"]
    [line] = loaded.run("list", "--store", loaded.store, "--json").stdout.splitlines()
    model = json.loads(line)
    assert (model["modelId"], model["baseModel"], model["files"]) == ("mine", "sd-1", 12)
    assert (model["variant"], model["format"]) == ("normal", "diffusers")


def test_list_names_a_model_that_cannot_be_read(loaded: Containers) -> None:
    """The row of the model says that its receipt cannot be read."""
    [receipt] = loaded.store.glob(".store/*/*/.sd-receipt.json")
    receipt.write_text("{}")
    ended = loaded.run("list", "--store", loaded.store)
    assert ended.stdout.splitlines()[1].split(maxsplit=1) == ["mine", "its receipt cannot be read"]


def test_list_of_an_empty_store_says_so(containers: Containers) -> None:
    """An empty table would leave it open whether the store was read."""
    ended = containers.run("list", "--store", containers.store)
    assert (ended.code, ended.stdout) == (0, "No model is published in this store.\n")


def test_verify_reads_all_files_of_a_model(loaded: Containers) -> None:
    """A changed byte is found although the size is the same."""
    ended = loaded.run("verify", "mine", "--store", loaded.store)
    assert ended.stdout == "mine: as it was published, 12 files\n"
    assert ended.code == ExitCode.DONE
    path = loaded.store / "mine" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    ended = loaded.run("verify", "mine", "--store", loaded.store)
    assert ended.stdout == f"mine/{WEIGHTS}: its content changed after it was published\n"
    assert ended.code == ExitCode.PERMANENT
    folder = os.path.realpath(loaded.store / "mine")
    assert f"what to do: Remove the folder {folder}, and load the model again" in ended.stderr


def test_verify_names_the_models_of_the_store(loaded: Containers) -> None:
    """A mistyped name is easy to correct."""
    ended = loaded.run("verify", "mina", "--store", loaded.store)
    remedy = "Give the name of a model that `sd-loader list` shows, or another --store."
    failed(ended, Reason.SOURCE_NOT_FOUND, f"mina is not published in {loaded.store}", remedy)
    assert "the store has mine" in ended.stderr


class _Unwritable(io.StringIO):
    """An output whose writes fail."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self._code = code

    def write(self, _: str) -> int:
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        pytest.param(errno.EPIPE, 128 + signal.SIGPIPE, "", id="the reader has read enough"),
        pytest.param(
            errno.ENOSPC,
            ExitCode.TRY_AGAIN,
            "error: cannot write the command's output: No space left on device\n",
            id="the disk of the output is full",
        ),
    ],
)
def test_output_that_cannot_be_written_is_not_a_fault_of_the_store(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    exit_code: int,
    words: str,
) -> None:
    """`sd-loader list | head` ends quietly, and a full disk of stdout is not a full volume."""
    monkeypatch.setattr(sys, "stdout", _Unwritable(code))
    assert main(["list", "--store", str(tmp_path)]) == exit_code
    assert capsys.readouterr().err == words


def test_closed_output_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the shell has closed a stream, Python sets it to None. The command still succeeds."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["list", "--store", str(tmp_path)]) == ExitCode.DONE
    for opened in (sys.stdout, sys.stderr):
        opened.close()


def test_load_without_a_url_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message begins with the missing option, like the messages of other options."""
    assert main(["load", "--model-id", "mine", "--store", str(tmp_path)]) == ExitCode.PERMANENT
    assert "error: InvalidSpec: --url: a repo id, a link or a file is" in capsys.readouterr().err


def test_unwritable_store_is_an_error_without_a_traceback(
    containers: Containers, checkpoint: Path, tmp_path: Path
) -> None:
    """The message names the folder, and the remedy is for a person at a shell."""
    (tmp_path / "file").write_text("")
    ended = load(containers, checkpoint, tmp_path / "file" / "store")
    failed(ended, Reason.VOLUME_NOT_WRITABLE, f"{tmp_path}/file/store: Not a directory")
    assert "Traceback" not in ended.stderr
    assert "--store folder that you may write to" in ended.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv of util-linux is missing")
@pytest.mark.parametrize("place", ["", "new"])
def test_store_without_write_permission_is_an_error_without_a_traceback(
    checkpoint: Path, tmp_path: Path, place: str
) -> None:
    """The store may exist already, or the loader may have to create it."""
    store = tmp_path / "store"
    store.mkdir(mode=0o555)
    # Root may write everywhere unless it gives up this capability.
    limited = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    command = ["load", "--url", checkpoint, "--model-id", "m", "--store", store / place]
    ended = subprocess.run(
        [*limited, sys.executable, "-m", "sd_loader", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"error: {Reason.VOLUME_NOT_WRITABLE}: " in ended.stderr
    assert "Permission denied" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == ExitCode.PERMANENT


def test_interrupted_load_says_that_it_can_be_continued(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """Ctrl-C is not a failure: no reason is printed, and the exit code is that of a signal."""
    link = hub.serve_file("/slow.safetensors", checkpoint, rate=1_000_000)
    process = containers.start(
        "load", "--url", link, "--model-id", "m", "--store", containers.store
    )
    deadline = time.monotonic() + 30
    while not [*containers.store.glob(".staging/*/*")]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    ended = containers.end(process)
    assert ended.code == 128 + signal.SIGINT
    assert "stopped by SIGINT: run the same command again to continue from here" in ended.stderr
    assert "error:" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "command", ["load", "inspect", "list", "verify", "sweep", "fetch", "convert", "remove"]
)
def test_help_of_each_command_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example is a whole command line."""
    with pytest.raises(SystemExit):
        arguments.parser().parse_args([command, "--help"])
    shown = capsys.readouterr().out
    assert f"\n  sd-loader {command} " in shown[shown.index("example") :]


def test_examples_of_people_are_accepted_by_the_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An example with an option that does not exist would mislead."""
    for command in ("load", "inspect", "list", "verify", "sweep"):
        with pytest.raises(SystemExit):
            arguments.parser().parse_args([command, "--help"])
        lines = [line for line in capsys.readouterr().out.splitlines() if "  sd-loader " in line]
        assert lines
        for line in lines:
            assert arguments.parser().parse_args(line.split()[1:]).command == command
