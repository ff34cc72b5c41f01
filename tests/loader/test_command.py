"""The loader's command line, run as Jobs run it, against servers on loopback."""

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
    """The version that readers get now."""
    return (containers.store / "model").resolve(strict=True)


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
    from tests.support.models import checkpoints

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
