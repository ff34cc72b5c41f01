"""The loader's command line, run as Jobs run it, against servers on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from fakehub import FakeHub
from loadercli import (
    NAMESAKE,
    OWNER,
    STRANGER,
    Containers,
    Ended,
    failed,
    load_request,
    remove_request,
)
from tiny import write_checkpoint

from sd_api.load import Artifact, Progress
from sd_api.reasons import ExitCode, Reason
from sd_loader.progress import CLEAR_LINE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 checkpoint in the original layout."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub and file server on loopback."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def containers(hub: FakeHub, tmp_path: Path) -> Containers:
    """Containers that may reach the Hub, with an empty volume."""
    return Containers.reaching(hub, tmp_path)


def artifact_of(ended: Ended) -> Artifact:
    """What the container says it has published."""
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.outcome == "loaded"
    assert ended.result.artifact is not None
    return ended.result.artifact


def served(containers: Containers) -> Path:
    """The version that readers get now."""
    return (containers.store / "model").resolve(strict=True)


def link_to(hub: FakeHub, checkpoint: Path) -> str:
    """A link to the checkpoint."""
    return hub.serve_file("/tiny.safetensors", checkpoint)


# --- loading


def test_a_link_becomes_a_diffusers_folder(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """Fetch answers with the source, convert with the artifact, stdout tells the progress."""
    request = load_request(hub.serve_file("/tiny.safetensors", checkpoint))
    fetched = containers.fetch(request)
    assert fetched.code == ExitCode.DONE, fetched.stderr
    assert fetched.result is not None
    assert fetched.result.outcome == "fetched"
    assert fetched.result.source is not None
    assert fetched.result.source.size_bytes == checkpoint.stat().st_size

    ended = containers.convert(request)
    artifact = artifact_of(ended)
    folder = containers.store / "model"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == (
        "StableDiffusionPipeline"
    )
    assert (artifact.base_model, artifact.precision) == ("sd1", "fp16")
    assert artifact.files == sum(
        path.is_file() and path.name != ".sd-receipt.json" for path in folder.rglob("*")
    )
    for line in (fetched.stdout + ended.stdout).splitlines():
        Progress.model_validate_json(line)


def test_the_container_of_the_weights_does_not_matter(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The same weights as .safetensors and as pickled .ckpt have the same digest, and share."""
    import checkpoints

    tensors = checkpoints.tiny_sd15()
    safetensors = checkpoints.save_safetensors(tmp_path / "tiny.safetensors", tensors)
    ckpt = checkpoints.save_ckpt(tmp_path / "tiny.ckpt", tensors)
    first = artifact_of(containers.load(load_request(hub.serve_file("/a", safetensors))))
    second = artifact_of(containers.load(load_request(hub.serve_file("/b", ckpt))))
    # The files of the second load are those of the first, and so take no space of their own.
    assert second == first.model_copy(update={"shared_bytes": second.shared_bytes})
    assert second.shared_bytes > 0.9 * second.size_bytes

    ended = containers.load(load_request(hub.serve_file("/b", ckpt), from_safetensors=True))
    failed(ended, Reason.UNSAFE_MODEL, "fromSafetensors")
    assert artifact_of(containers.load(load_request(hub.url + "/b"))) == second


def test_a_published_folder_loads_again_as_a_hub_repo(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A diffusers repo comes through the Hub's client, pinned to its commit."""
    first = artifact_of(containers.load(load_request(link_to(hub, checkpoint))))
    hub.add_repo("org/model", served(containers))
    ended = containers.load(load_request("org/model", model_id="from-hub"))
    assert artifact_of(ended).size_bytes == first.size_bytes
    assert ended.result is not None
    assert ended.result.source is not None
    assert ended.result.source.commit == hub.repos["org/model"].commit()
    assert ended.result.source.format == "diffusers"


def test_a_rerun_answers_from_the_receipt(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A Job whose answer got lost answers again, from another Pod, without asking the source."""
    request = load_request(link_to(hub, checkpoint))
    first = containers.load(request)
    hub.forget()
    again = containers.load(request, pod="pod-2")
    assert again.result == first.result
    assert hub.requests == []


def test_a_reload_keeps_the_old_version_for_who_still_reads_it(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """The link moves in one step; the former version goes with a later load."""
    link = link_to(hub, checkpoint)
    artifact_of(containers.load(load_request(link)))
    old = served(containers)
    artifact_of(containers.load(load_request(link, revision="fp32")))
    assert served(containers) != old
    assert (old / "model_index.json").exists()

    later = load_request(link, reload="now")
    artifact_of(containers.load(later, SD_LOADER_RETAIN_PREVIOUS_SECONDS="0"))
    assert {path.name for path in served(containers).parent.iterdir()} == {
        later.load_hash,
        "owner.json",
    }


def test_a_failed_reload_keeps_the_model_served(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A source that has gone leaves what is published as it is."""
    artifact_of(containers.load(load_request(link_to(hub, checkpoint))))
    before = served(containers)
    gone = hub.serve_file("/gone", b"", status=404)
    failed(containers.load(load_request(gone)), Reason.SOURCE_NOT_FOUND, "404")
    assert served(containers) == before
    assert (before / "unet/config.json").exists()


def test_a_model_id_has_one_owner(containers: Containers, hub: FakeHub, checkpoint: Path) -> None:
    """Another model is told whose the id is before it downloads; the owner's removal frees it."""
    link = link_to(hub, checkpoint)
    artifact_of(containers.load(load_request(link)))
    before = served(containers)
    hub.forget()
    failed(
        containers.load(load_request(link, STRANGER)),
        Reason.MODEL_ID_CONFLICT,
        "model belongs to ns/model",
    )
    assert containers.remove(STRANGER).code == ExitCode.DONE
    assert served(containers) == before
    assert hub.requests == []

    assert containers.remove(OWNER).code == ExitCode.DONE
    artifact_of(containers.load(load_request(link, STRANGER)))


def test_a_folder_of_the_users_is_no_model(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """What somebody else put under the id is named and stays."""
    (containers.store / "model").mkdir()
    (containers.store / "model/notes.txt").write_text("mine")
    ended = containers.load(load_request(link_to(hub, checkpoint)))
    failed(ended, Reason.MODEL_ID_CONFLICT, "model on the volume is a folder")
    assert containers.remove().code == ExitCode.DONE
    assert (containers.store / "model/notes.txt").read_text() == "mine"


def test_retain_and_recreate_downloads_nothing(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A retained model is adopted by the next of its name."""
    link = link_to(hub, checkpoint)
    first = artifact_of(containers.load(load_request(link)))
    assert containers.remove(retain=True).code == ExitCode.DONE
    assert (served(containers) / "model_index.json").exists()
    hub.forget()
    assert artifact_of(containers.load(load_request(link, NAMESAKE))) == first
    assert hub.requests == []
    assert containers.remove(NAMESAKE).code == ExitCode.DONE
    assert list(containers.store.iterdir()) == []


# --- stopping


MANY_STEPS = 8
"""Of writing: more bytes than a file's header, which each Pod reads."""


def interrupted(containers: Containers, hub: FakeHub, checkpoint: Path, signum: int) -> Ended:
    """A fetch that gets a signal in the middle of its download."""
    link = hub.serve_file("/tiny.safetensors", checkpoint, rate=8_000_000)
    process = containers.start("fetch", *containers.arguments(load_request(link)))
    deadline = time.monotonic() + 30
    while not any(
        json.loads(record.read_text())["written"] >= MANY_STEPS
        for record in containers.store.glob(".staging/*/pod/out/.streamed.json")
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    stopped = time.monotonic()
    ended = containers.end(process)
    assert time.monotonic() - stopped < 3
    return ended


def goes_on(containers: Containers, hub: FakeHub, checkpoint: Path) -> None:
    """The next Pod downloads only what is missing."""
    hub.forget()
    artifact_of(containers.load(load_request(link_to(hub, checkpoint)), pod="pod-2"))
    assert any("range" in request.headers for request in hub.requests)
    assert hub.bytes_served < checkpoint.stat().st_size
    assert not (containers.store / ".staging").exists()


def test_a_stopped_download_goes_on_in_the_next_pod(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """SIGTERM ends the loader at once, with an answer."""
    ended = interrupted(containers, hub, checkpoint, signal.SIGTERM)
    failed(ended, Reason.LOADER_CRASHED, "stopped by SIGTERM")
    goes_on(containers, hub, checkpoint)


def test_a_killed_download_goes_on_in_the_next_pod(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """SIGKILL costs what was in flight."""
    ended = interrupted(containers, hub, checkpoint, signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    assert ended.result is None
    goes_on(containers, hub, checkpoint)


def test_output_that_nobody_reads_does_not_matter(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """Answer and exit code are those of the load."""
    process = containers.start(
        "fetch", *containers.arguments(load_request(link_to(hub, checkpoint)))
    )
    assert process.stdout is not None
    process.stdout.close()
    ended = containers.end(process)
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.outcome == "fetched"


# --- by hand


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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("no/such/file.ckpt", "is no file", id="missing"),
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


def test_remove_starts_without_the_heavy_modules(containers: Containers) -> None:
    """A clean-up answers at once: neither the HTTP stack nor numpy is imported."""
    code = (
        "import sys; from sd_loader.__main__ import main; code = main(sys.argv[1:]);"
        "print(*sorted({'httpx2', 'huggingface_hub', 'numpy', 'torch'} & set(sys.modules)));"
        "sys.exit(code)"
    )
    arguments = ("remove", *containers.arguments(remove_request()))
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == ""
