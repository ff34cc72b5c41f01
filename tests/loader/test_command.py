"""The loader's command line, run as a Job runs it, against servers on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from devkit.fakehub import FakeHub
from sd_api.reasons import ExitCode, Reason
from sd_api.wire import Progress
from tests.support.loader.loadercli import (
    NAMESAKE,
    OWNER,
    STRANGER,
    Containers,
    artifact_of,
    failed,
    link_to,
    load_request,
    remove_request,
)


def served(containers: Containers) -> Path:
    """Return the folder of the published version."""
    return (containers.store / "model").resolve(strict=True)


def test_link_becomes_a_diffusers_folder(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """Fetch reports the source, convert reports the artifact, and stdout carries progress.

    Each container is a process here, as in a Job.
    """
    containers = containers.in_own_process()
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
    assert (artifact.base_model, artifact.precision) == ("sd-1", "fp16")
    assert artifact.files == sum(
        path.is_file() and not path.name.startswith(".sd-") for path in folder.rglob("*")
    )
    for line in (fetched.stdout + ended.stdout).splitlines():
        Progress.model_validate_json(line)


def test_same_weights_in_two_containers_share_their_files(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """A .safetensors file and a .ckpt of the same weights give the same digest.

    A load with spec.fromSafetensors refuses the .ckpt, and the published model stays.
    """
    from tests.support.models import checkpoints

    tensors = checkpoints.smallest_sd15()
    safetensors = checkpoints.save_safetensors(tmp_path / "tiny.safetensors", tensors)
    ckpt = checkpoints.save_ckpt(tmp_path / "tiny.ckpt", tensors)
    first = artifact_of(containers.load(load_request(hub.serve_file("/a", safetensors))))
    second = artifact_of(containers.load(load_request(hub.serve_file("/b", ckpt))))
    # The second load shares the files of the first, so it takes almost no space of its own.
    assert second == first.model_copy(update={"shared_bytes": second.shared_bytes})
    assert second.shared_bytes > 0.9 * second.size_bytes

    ended = containers.load(load_request(hub.serve_file("/b", ckpt), from_safetensors=True))
    failed(ended, Reason.UNSAFE_MODEL, "fromSafetensors")
    assert artifact_of(containers.load(load_request(hub.url + "/b"))) == second


def test_published_folder_loads_from_a_hub_repo(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """The Hub's client downloads the repo, pinned to its commit; the weights stay the same."""
    first = artifact_of(containers.load(load_request(link_to(hub, checkpoint))))
    source = served(containers)
    hub.add_repo("org/model", source)
    ended = containers.load(load_request("org/model", model_id="from-hub"))
    assert artifact_of(ended).files == first.files
    copy = containers.store / "from-hub"
    weights = {path.relative_to(source) for path in source.rglob("*.safetensors")}
    assert weights
    for path in weights:
        assert (copy / path).read_bytes() == (source / path).read_bytes(), path
    assert ended.result is not None
    assert ended.result.source is not None
    assert ended.result.source.commit == hub.repos["org/model"].commit()
    assert ended.result.source.format == "diffusers"


def test_rerun_returns_the_result_from_the_receipt(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A Job that runs again in another Pod gets the same result without calling the source."""
    request = load_request(link_to(hub, checkpoint))
    first = containers.load(request)
    hub.forget()
    again = containers.load(request, pod="pod-2")
    assert again.result == first.result
    assert hub.requests == []


def test_reload_keeps_the_previous_version_until_a_later_load(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """The link moves in one step, and a later load removes the previous version."""
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


def test_failed_reload_keeps_the_published_model(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A missing source leaves the published version unchanged."""
    artifact_of(containers.load(load_request(link_to(hub, checkpoint))))
    before = served(containers)
    gone = hub.serve_file("/gone", b"", status=404)
    failed(containers.load(load_request(gone)), Reason.SOURCE_NOT_FOUND, "404")
    assert served(containers) == before
    assert (before / "unet/config.json").exists()


def test_model_id_has_one_owner(containers: Containers, hub: FakeHub, checkpoint: Path) -> None:
    """A second model with this id fails before any download. Removing the owner frees the id."""
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


def test_foreign_folder_at_the_model_id_is_kept(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """The load fails with a conflict, and remove does not delete the folder."""
    (containers.store / "model").mkdir()
    (containers.store / "model/notes.txt").write_text("mine")
    ended = containers.load(load_request(link_to(hub, checkpoint)))
    failed(ended, Reason.MODEL_ID_CONFLICT, "model on the volume is a folder")
    assert containers.remove().code == ExitCode.DONE
    assert (containers.store / "model/notes.txt").read_text() == "mine"


def test_retained_model_is_adopted_without_a_download(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """A new model of the same name adopts the retained files."""
    link = link_to(hub, checkpoint)
    first = artifact_of(containers.load(load_request(link)))
    assert containers.remove(retain=True).code == ExitCode.DONE
    assert (served(containers) / "model_index.json").exists()
    hub.forget()
    assert artifact_of(containers.load(load_request(link, NAMESAKE))) == first
    assert hub.requests == []
    assert containers.remove(NAMESAKE).code == ExitCode.DONE
    assert list(containers.store.iterdir()) == []


def test_closed_stdout_does_not_fail_the_load(
    containers: Containers, hub: FakeHub, checkpoint: Path
) -> None:
    """The result and the exit code stay the same if nobody reads the progress."""
    process = containers.start(
        "fetch", *containers.arguments(load_request(link_to(hub, checkpoint)))
    )
    assert process.stdout is not None
    process.stdout.close()
    ended = containers.end(process)
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.outcome == "fetched"


def test_remove_imports_no_heavy_modules(containers: Containers) -> None:
    """Remove starts fast because it imports neither the HTTP stack nor numpy nor torch."""
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
