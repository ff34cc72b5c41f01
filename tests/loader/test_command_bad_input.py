"""A bad source fails with a reason and a next step, and leaves nothing on the volume."""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from devkit.fakefiles import Faults
from devkit.fakehub import FakeHub
from sd_api.reasons import ExitCode, Reason
from tests.support.formats.zipfiles import Part, deflated, zip_bytes
from tests.support.loader.loadercli import (
    OTHER,
    Containers,
    failed,
    load_request,
    safetensors_bytes,
)
from tests.support.models.modelindex import INDEX


def pickled(payload: object, folder: Path) -> Path:
    """Write a checkpoint in the format of torch.save whose pickle holds this object."""
    path = folder / "evil.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


class Canary:
    """An object that creates a file if a plain unpickler loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.system, (f"touch {self.path}",))


LORA = safetensors_bytes({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)})
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>...</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.mark.parametrize(
    ("body", "faults", "reason", "message"),
    [
        pytest.param(b"", {"status": 401}, Reason.AUTHENTICATION_REQUIRED, "401", id="401"),
        pytest.param(b"", {"status": 403}, Reason.ACCESS_DENIED, "403", id="403"),
        pytest.param(b"", {"status": 404}, Reason.SOURCE_NOT_FOUND, "404", id="404"),
        pytest.param(HTML, {}, Reason.NOT_A_MODEL, "is an HTML page", id="login page"),
        pytest.param(POINTER, {}, Reason.NOT_A_MODEL, "a Git LFS pointer", id="lfs pointer"),
        pytest.param(b"", {}, Reason.NOT_A_MODEL, "empty", id="empty"),
        pytest.param(OTHER[:-8], {}, Reason.DAMAGED_FILE, "", id="truncated"),
        pytest.param(
            OTHER,
            {},
            Reason.UNSUPPORTED_FORMAT,
            "not a Stable Diffusion checkpoint",
            id="other model",
        ),
        pytest.param(LORA, {}, Reason.UNSUPPORTED_FORMAT, "a LoRA: it needs", id="lora"),
    ],
)
def test_bad_source_fails_with_its_reason(
    containers: Containers,
    hub: FakeHub,
    body: bytes,
    faults: dict[str, int],
    reason: Reason,
    message: str,
) -> None:
    """The message names the problem, and the volume stays empty."""
    link = hub.serve_file("/model.ckpt", body, **faults)
    failed(containers.load(load_request(link, model_type="custom_ckpt")), reason, message)
    assert list(containers.store.iterdir()) == []


SD1_INDEX = json.dumps(INDEX).encode()
EVIL_INDEX = json.dumps({**INDEX, "unet": ["my_unet", "MyUNet"]}).encode()
OWN_INDEX = json.dumps({**INDEX, "_class_name": ["pipeline.py", "Mine"]}).encode()


@pytest.mark.parametrize(
    ("members", "reason", "message"),
    [
        pytest.param(
            [Part("model_index.json", SD1_INDEX), deflated("unet/x.safetensors", bytes(4 << 20))],
            Reason.UNSAFE_MODEL,
            "as in a zip bomb",
            id="zip bomb",
        ),
        pytest.param(
            [Part("model_index.json", SD1_INDEX), Part("../../evil", b"x")],
            Reason.DAMAGED_FILE,
            "not a plain path: ../../evil",
            id="traversal",
        ),
        pytest.param(
            [Part("model_index.json", SD1_INDEX), Part("unet", b"/etc", mode=stat.S_IFLNK)],
            Reason.UNSAFE_MODEL,
            "a link",
            id="symbolic link",
        ),
        pytest.param(
            [Part("model_index.json", EVIL_INDEX), Part("my_unet.py", b"import os")],
            Reason.UNSAFE_MODEL,
            "code of the repo's own",
            id="remote code",
        ),
        pytest.param(
            [Part("model_index.json", OWN_INDEX), Part("pipeline.py", b"import os")],
            Reason.UNSAFE_MODEL,
            "custom pipeline",
            id="custom pipeline",
        ),
        pytest.param(
            [Part("readme.txt", b"x")], Reason.UNSUPPORTED_FORMAT, "readme.txt", id="another zip"
        ),
    ],
)
def test_bad_zip_of_a_trained_model_is_refused_and_leaves_nothing(
    containers: Containers, hub: FakeHub, members: list[Part], reason: Reason, message: str
) -> None:
    """Nothing is left on the volume, and nothing is written outside it."""
    link = hub.serve_file("/trained", zip_bytes(members))
    failed(containers.load(load_request(link, model_type="api_trained")), reason, message)
    assert list(containers.store.iterdir()) == []
    assert not (containers.store.parent / "evil").exists()


@pytest.mark.parametrize(
    ("url", "fields", "reason", "message"),
    [
        pytest.param(
            "org/two", {}, Reason.INVALID_SPEC, "link to one of them", id="several checkpoints"
        ),
        pytest.param(
            "org/two", {"git_revision": "v9"}, Reason.SOURCE_NOT_FOUND, "v9", id="no revision"
        ),
        pytest.param(
            "/org/two/resolve/main/c.ckpt",
            {},
            Reason.SOURCE_NOT_FOUND,
            "a.ckpt, b.ckpt",
            id="no file",
        ),
        pytest.param("old/name", {}, Reason.INVALID_SPEC, "b.ckpt", id="renamed, several"),
        pytest.param("org/gated", {}, Reason.AUTHENTICATION_REQUIRED, "gated", id="gated"),
        pytest.param("org/none", {}, Reason.SOURCE_NOT_FOUND, "or is private", id="no repo"),
        pytest.param("abc-1", {}, Reason.INVALID_SPEC, "TRAINED_URL_TEMPLATE", id="no template"),
    ],
)
def test_unloadable_hub_source_is_explained(
    containers: Containers,
    hub: FakeHub,
    tmp_path: Path,
    url: str,
    fields: dict[str, Any],
    reason: Reason,
    message: str,
) -> None:
    """The message lists the alternatives if there are any."""
    for name in ("two/a.ckpt", "two/b.ckpt", "gated/a.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(OTHER)
    hub.add_repo("org/two", tmp_path / "two")
    hub.add_repo("org/gated", tmp_path / "gated", gated=True, token="hf_x")
    hub.renamed["old/name"] = "org/two"
    kind = "huggingface" if "/" in url else "api_trained"
    url = hub.url + url if url.startswith("/") else url
    failed(containers.load(load_request(url, model_type=kind, **fields)), reason, message)
    assert list(containers.store.iterdir()) == []


def test_rate_limit_ends_the_pod_but_not_the_job(containers: Containers, hub: FakeHub) -> None:
    """The Pod exits with TRY_AGAIN, so the Job waits and starts another Pod."""
    hub.api_faults = Faults(status=429, headers={"Retry-After": "3600"})
    ended = containers.load(load_request("org/name"))
    failed(ended, Reason.RATE_LIMITED, "too many requests")
    assert ended.code == ExitCode.TRY_AGAIN


def test_trained_model_id_is_resolved_by_the_url_template(
    containers: Containers, hub: FakeHub
) -> None:
    """The setting gives the link for the id.

    The file behind it is another kind of model and is refused.
    """
    hub.serve_file("/trained/abc-1", OTHER)
    ended = containers.run(
        *("load", "--url", "abc-1", "--model-type", "api_trained", "--model-id", "m"),
        *("--store", containers.store),
        SD_LOADER_TRAINED_URL_TEMPLATE=f"{hub.url}/trained/{{id}}",
    )
    failed(ended, Reason.UNSUPPORTED_FORMAT, "not a Stable Diffusion checkpoint")
    assert [item.path for item in hub.requests] == ["/trained/abc-1"]


@pytest.mark.parametrize("target", ["/trained/{id}?key={key}", "/trained/{key}/{id}"])
def test_key_of_a_trained_model_is_sent_and_never_shown(
    containers: Containers, hub: FakeHub, tmp_path: Path, target: str
) -> None:
    """The key of the administrator's logins replaces {key} in the url template.

    Neither output nor result shows the key. If the key is missing, the load fails.
    """
    key = "a-key/not-to-be-shown"
    (tmp_path / "trained").write_text(key)
    template = hub.url + target
    request = load_request("abc-1", model_type="api_trained")
    env = {"SD_LOADER_TRAINED_URL_TEMPLATE": template}
    ended = containers.load(request, **env, SD_LOADER_LOGINS_DIR=str(tmp_path))
    failed(ended, Reason.SOURCE_NOT_FOUND, "")
    sent = target.format(id="abc-1", key=quote(key, safe=""))
    assert [item.target for item in hub.requests] == [sent]
    assert "not-to-be-shown" not in f"{ended.stdout}{ended.stderr}{ended.result}"
    failed(containers.load(request, **env), Reason.SECRET_NOT_FOUND, "its key `trained`")


def test_unreachable_host_exits_with_try_again(containers: Containers) -> None:
    """The host may come back, so the Job starts another Pod."""
    with socket.socket() as unheard:
        # The socket stays bound so that no other test's server listens on this port.
        unheard.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unheard.getsockname()[1]}"
        request = load_request(f"http://{host}/model.ckpt")
        ended = containers.load(request, SD_LOADER_ALLOWED_HOSTS=host)
    failed(ended, Reason.SOURCE_UNREACHABLE, host)
    assert ended.code == ExitCode.TRY_AGAIN
    assert not list(containers.store.glob("[!.]*"))
    assert not list(containers.store.glob(".store/*/????????????????"))


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x", "http://169.254.169.254/latest", "http://example.com/model.ckpt"],
    ids=["loopback", "metadata service", "plain http"],
)
def test_address_outside_the_policy_is_refused(containers: Containers, url: str) -> None:
    """The loader calls only public https addresses and hosts that the administrator allows."""
    failed(containers.load(load_request(url)), Reason.ADDRESS_REFUSED, "")
    assert list(containers.store.iterdir()) == []


def test_digest_mismatch_is_refused(containers: Containers, hub: FakeHub) -> None:
    """The message names the expected digest."""
    link = hub.serve_file("/model.safetensors", OTHER)
    ended = containers.load(load_request(link, sha256="0" * 64))
    failed(ended, Reason.DIGEST_MISMATCH, "0" * 64)
    assert list(containers.store.iterdir()) == []


def test_token_without_access_to_a_gated_repo_is_refused(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The message names the repo whose licence the user must accept."""
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


def test_missing_secret_is_named(containers: Containers, hub: FakeHub) -> None:
    """The load fails before it sends a request without the token."""
    link = hub.serve_file("/model.ckpt", OTHER)
    ended = containers.load(load_request(link, credentials=True))
    failed(ended, Reason.SECRET_NOT_FOUND, "Secret")
    assert hub.requests == []


def test_token_for_another_host_is_never_sent(containers: Containers, hub: FakeHub) -> None:
    """The load fails without a request, and its output does not contain the token."""
    containers.credentials.mkdir(parents=True)
    (containers.credentials / "token").write_text("very-secret")
    (containers.credentials / "host").write_text("models.example.com")
    link = hub.serve_file("/model.ckpt", OTHER)
    ended = containers.load(load_request(link, credentials=True))
    failed(ended, Reason.CREDENTIALS_HOST_MISMATCH, hub.host)
    assert hub.requests == []
    assert "very-secret" not in ended.stdout + ended.stderr


def test_malicious_pickle_is_not_executed(
    containers: Containers, hub: FakeHub, tmp_path: Path
) -> None:
    """The loader executes nothing from the pickle.

    The message names the function that the pickle would call.
    """
    canary = tmp_path / "canary"
    evil = pickled({"state_dict": Canary(canary)}, tmp_path)
    failed(
        containers.load(load_request(hub.serve_file("/model.ckpt", evil))),
        Reason.UNSAFE_MODEL,
        "system",
    )
    assert not canary.exists()
    pickle.loads(zipfile.ZipFile(evil).read("archive/data.pkl"))
    assert canary.exists(), "a plain unpickler must create the canary file"
    assert list(containers.store.iterdir()) == []
