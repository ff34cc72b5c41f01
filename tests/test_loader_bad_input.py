"""What the loader says of bad input: a reason, a remedy, and nothing left on the volume."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub
from loadercli import Containers, failed, load_request, remove_request, safetensors_bytes
from tiny import write_checkpoint

from sd_api.reasons import ExitCode, Reason
from sd_loader.errors import LoaderError
from sd_loader.settings import Settings


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub and file server on loopback."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def containers(hub: FakeHub, tmp_path: Path) -> Containers:
    """Containers that may reach the Hub, with an empty volume."""
    return Containers.reaching(hub, tmp_path)


def pickled(payload: object, folder: Path) -> Path:
    """A checkpoint as torch.save writes it, whose pickle holds this object."""
    path = folder / "evil.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


class Canary:
    """Writes a file when it is unpickled the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.system, (f"touch {self.path}",))


LORA = safetensors_bytes({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)})
OTHER = safetensors_bytes({"layer.weight": (4, 4)})
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>...</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.mark.parametrize(
    ("body", "faults", "reason", "message"),
    [
        pytest.param(b"", {"status": 401}, Reason.AUTHENTICATION_REQUIRED, "401", id="401"),
        pytest.param(b"", {"status": 403}, Reason.ACCESS_DENIED, "403", id="403"),
        pytest.param(b"", {"status": 404}, Reason.SOURCE_NOT_FOUND, "404", id="404"),
        pytest.param(
            HTML, {}, Reason.NOT_A_MODEL, "an HTML page titled “Sign in”", id="login page"
        ),
        pytest.param(POINTER, {}, Reason.NOT_A_MODEL, "a Git LFS pointer", id="lfs pointer"),
        pytest.param(b"", {}, Reason.NOT_A_MODEL, "empty", id="empty"),
        pytest.param(OTHER[:-8], {}, Reason.NOT_A_MODEL, "", id="truncated"),
        pytest.param(OTHER, {}, Reason.UNSUPPORTED_FORMAT, "no Stable Diffusion", id="other model"),
        pytest.param(LORA, {}, Reason.UNSUPPORTED_FORMAT, "a LoRA: it needs", id="lora"),
    ],
)
def test_a_bad_source_has_a_reason_and_a_remedy(
    containers: Containers,
    hub: FakeHub,
    body: bytes,
    faults: dict[str, int],
    reason: Reason,
    message: str,
) -> None:
    """What was wrong is said by name, and nothing is left on the volume."""
    link = hub.serve_file("/model.ckpt", body, **faults)
    failed(containers.load(load_request(link)), reason, message)
    assert list(containers.store.iterdir()) == []


def test_an_unreachable_host_may_be_tried_again(containers: Containers) -> None:
    """A host that does not answer is not the user's mistake alone: the Job tries again."""
    with FakeHub() as gone:
        link = gone.serve_file("/model.ckpt", OTHER)
    ended = containers.load(load_request(link), SD_LOADER_ALLOWED_HOSTS=gone.host)
    failed(ended, Reason.SOURCE_UNREACHABLE, gone.host)
    assert ended.code == ExitCode.TRY_AGAIN
    assert not list(containers.store.glob("[!.]*"))
    assert not list(containers.store.glob(".store/*/????????????????"))


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x", "http://169.254.169.254/latest", "http://example.com/model.ckpt"],
    ids=["loopback", "metadata service", "plain http"],
)
def test_a_refused_address_is_not_called(containers: Containers, url: str) -> None:
    """Only public https addresses, and what the administrator allows."""
    failed(containers.load(load_request(url)), Reason.ADDRESS_REFUSED, "")
    assert list(containers.store.iterdir()) == []


def test_another_digest_than_asked_for_is_refused(containers: Containers, hub: FakeHub) -> None:
    """Both digests are named."""
    link = hub.serve_file("/model.safetensors", OTHER)
    ended = containers.load(load_request(link, sha256="0" * 64))
    failed(ended, Reason.DIGEST_MISMATCH, "0" * 64)
    assert list(containers.store.iterdir()) == []


def test_a_gated_repo_asks_for_its_licence(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """A token without access to the repo is told where to get it."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    hub.add_repo("org/gated", tmp_path / "repo", gated=True, token="granted")
    hub.add_repo("org/other", tmp_path / "repo", private=True, token="other")
    containers.credentials.mkdir(parents=True)
    (containers.credentials / "token").write_text("other")
    failed(
        containers.load(load_request("org/gated", credentials=True)),
        Reason.ACCESS_DENIED,
        "org/gated",
    )
    assert list(containers.store.iterdir()) == []


def test_a_missing_secret_is_named(containers: Containers, hub: FakeHub) -> None:
    """The optional Secret volume is empty: the load says so instead of asking without a token."""
    link = hub.serve_file("/model.ckpt", OTHER)
    ended = containers.load(load_request(link, credentials=True))
    failed(ended, Reason.SECRET_NOT_FOUND, "Secret")
    assert hub.requests == []


def test_a_token_is_for_its_own_host_only(containers: Containers, hub: FakeHub) -> None:
    """Credentials for another host are not sent, and shown nowhere."""
    containers.credentials.mkdir(parents=True)
    (containers.credentials / "token").write_text("very-secret")
    (containers.credentials / "host").write_text("models.example.com")
    link = hub.serve_file("/model.ckpt", OTHER)
    ended = containers.load(load_request(link, credentials=True))
    failed(ended, Reason.CREDENTIALS_HOST_MISMATCH, hub.host)
    assert hub.requests == []
    assert "very-secret" not in ended.stdout + ended.stderr


def test_a_malicious_pickle_is_inert(containers: Containers, hub: FakeHub, tmp_path: Path) -> None:
    """Nothing in it is executed, whatever it is called; the load says what it would have called."""
    canary = tmp_path / "canary"
    evil = pickled({"state_dict": Canary(canary)}, tmp_path)
    failed(
        containers.load(load_request(hub.serve_file("/model.ckpt", evil))),
        Reason.UNSAFE_MODEL,
        "system",
    )
    assert not canary.exists()
    pickle.loads(zipfile.ZipFile(evil).read("archive/data.pkl"))
    assert canary.exists(), "the canary of this test must sing when it is unpickled"
    assert list(containers.store.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        pytest.param({"vae": {"url": "org/vae"}}, Reason.INVALID_SPEC, "spec.vae", id="vae"),
        pytest.param(
            {"original_config": "https://x.example/y"},
            Reason.INVALID_SPEC,
            "spec.originalConfig",
            id="config",
        ),
        pytest.param({"model_type": "lora"}, Reason.UNSUPPORTED_FORMAT, "lora", id="model type"),
        pytest.param(
            {"model_type": "huggingface", "weights": "ema"},
            Reason.INVALID_SPEC,
            "spec.weights",
            id="averages of a repo",
        ),
    ],
)
def test_what_this_version_cannot_do_costs_no_download(
    containers: Containers, hub: FakeHub, fields: dict[str, Any], reason: Reason, message: str
) -> None:
    """The spec alone tells; neither source nor volume is touched."""
    url = "org/name" if fields.get("model_type") == "huggingface" else f"{hub.url}/model.ckpt"
    failed(containers.fetch(load_request(url, **fields)), reason, message)
    assert hub.requests == []
    assert list(containers.store.iterdir()) == []


@pytest.mark.parametrize("value", ["10G", "-1", "1e9", "9" * 100])
@pytest.mark.parametrize("name", ["SD_LOADER_MAX_BYTES", "SD_LOADER_RETAIN_PREVIOUS_SECONDS"])
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    """The administrator learns which variable it is."""
    with pytest.raises(LoaderError, match=f"{name} must be a whole number") as caught:
        Settings.from_env({name: value})
    assert caught.value.reason is Reason.INVALID_SPEC


def test_a_wrong_setting_is_answered(containers: Containers) -> None:
    """With a termination message, like every other failure."""
    ended = containers.run(
        "remove", *containers.arguments(remove_request()), SD_LOADER_MAX_BYTES="10G"
    )
    failed(ended, Reason.INVALID_SPEC, "SD_LOADER_MAX_BYTES must be a whole number")


@pytest.mark.parametrize("command", ["fetch", "convert", "remove"])
@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        ("{", "not valid"),
        ("{}", "owner: Field required"),
        ('{"modelId": "../../etc"}', "modelId: String should match"),
        ('{"surprise": "token=very-secret"}', "surprise: Extra inputs"),
    ],
    ids=["no JSON", "empty", "path in the model id", "unknown field"],
)
def test_a_request_that_does_not_parse_is_permanent(
    containers: Containers, command: str, request_text: str, message: str
) -> None:
    """The message names the field and quotes nothing."""
    ended = containers.run(command, "--request", request_text, "--store", containers.store)
    failed(ended, Reason.INVALID_SPEC, message)
    assert "very-secret" not in ended.stderr


def test_a_read_only_volume_is_named(
    containers: Containers, hub: FakeHub, tmpfs: Callable[..., Path]
) -> None:
    """Nothing is downloaded for a volume that nothing can be put on."""
    containers.store = tmpfs("ro")
    ended = containers.load(load_request(hub.serve_file("/model.safetensors", OTHER)))
    failed(ended, Reason.VOLUME_NOT_WRITABLE, "Read-only")
    assert hub.requests == []


@pytest.mark.parametrize("size", ["20m", "50m"], ids=["for the download", "for the conversion"])
def test_a_full_disk_is_named_and_freed(
    containers: Containers,
    hub: FakeHub,
    tmpfs: Callable[..., Path],
    tmp_path: Path,
    size: str,
) -> None:
    """A load that does not fit gives back what it took."""
    containers.store = tmpfs(f"size={size}")
    write_checkpoint(tmp_path / "tiny.safetensors")  # 34 MB
    link = hub.serve_file("/model.safetensors", tmp_path / "tiny.safetensors")
    failed(containers.load(load_request(link)), Reason.INSUFFICIENT_STORAGE, "")
    assert list(containers.store.iterdir()) == []


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts small volumes, where that is allowed."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        ended = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if ended.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {ended.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)
