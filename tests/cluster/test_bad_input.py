"""Bad input is reported on the resource with reason, remedy and Event, and leaves no files.

All models are applied at once and checked one by one. The loader's tests cover every kind of bad
file; this module has one file for each way in which the loader's result reaches the user. A source
that does not have the file, an address that is not allowed, a page, hostile code and a conversion
that fails are the ways that differ most; the others are slow tests.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devkit.fakehub import FakeHub
from sd_api.reasons import Reason
from tests.support.hostile.pickles import (
    EMPTY_DICT,
    SAMPLES,
    SETITEM,
    arguments,
    call,
    name,
    pickled,
    text,
)
from tests.support.operator.operated import Operated, condition

pytestmark = pytest.mark.cluster

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4265146304\n"
)
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head></html>"


def torch_archive(content: bytes) -> bytes:
    """Return a zip .ckpt around a pickle, with one storage of four bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", b"\0" * 4)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def state_dict() -> bytes:
    """Return the pickle of a checkpoint with one number, as torch writes it."""
    zero, one, false, persistent = b"K\0", b"K\1", b"\x89", b"Q"
    storage = arguments(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), one)
    tensor = call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage + persistent,
        zero,
        arguments(one),
        arguments(one),
        false,
        call(name("collections", "OrderedDict")),
    )
    return pickled(EMPTY_DICT, text("w"), tensor, SETITEM)


def lora() -> bytes:
    """Return a kohya LoRA of one layer."""
    header = (
        b'{"lora_unet_down_blocks_0.lora_down.weight":'
        b'{"dtype":"F16","shape":[4,8],"data_offsets":[0,64]}}'
    )
    return len(header).to_bytes(8, "little") + header + np.zeros(32, np.float16).tobytes()


def cases(hub: FakeHub, refused: FakeHub, work: Path, checkpoint: Path) -> dict[str, Any]:
    """Return specs by name, each with its fault."""
    whole = checkpoint.read_bytes()
    plain = torch_archive(state_dict())
    hostile = torch_archive(next(iter(SAMPLES.values())))
    (work / "repo").mkdir()
    (work / "repo" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    hub.add_repo("org/gated", work / "repo", gated=True, token="hf_x")
    served = hub.serve_file
    return {
        "not-found": {"url": f"{hub.url}/nothing.safetensors"},
        "repo-not-found": {"url": "org/nothing"},
        "unauthorized": {"url": served("/401.safetensors", b"", status=401)},
        "gated": {"url": "org/gated"},
        "refused": {"url": refused.serve_file("/m.safetensors", b"x")},
        "login-page": {"url": served("/page.safetensors", LOGIN_PAGE)},
        "lfs-pointer": {"url": served("/pointer.safetensors", LFS_POINTER)},
        "empty": {"url": served("/empty.safetensors", b"")},
        "truncated": {"url": served("/cut.safetensors", whole[: len(whole) // 2])},
        "mismatch": {"url": served("/m.safetensors", checkpoint), "sha256": "0" * 64},
        "lora-as-checkpoint": {
            "url": served("/lora.safetensors", lora()),
            "modelType": "custom_ckpt",
        },
        "pickle": {"url": served("/m.ckpt", plain), "fromSafetensors": True},
        "hostile": {"url": served("/hostile.ckpt", hostile)},
        "half-a-lora": {"url": served("/l.safetensors", lora()), "modelType": "lora"},
        "lora-as-embedding": {"url": served("/e.safetensors", lora()), "modelType": "embeddings"},
    }


EXPECTED = {
    "not-found": (Reason.SOURCE_NOT_FOUND, "404"),
    "repo-not-found": (Reason.SOURCE_NOT_FOUND, "org/nothing"),
    "unauthorized": (Reason.AUTHENTICATION_REQUIRED, "401"),
    "gated": (Reason.AUTHENTICATION_REQUIRED, "org/gated"),
    "refused": (Reason.ADDRESS_REFUSED, "127.0.0.1"),
    "login-page": (Reason.NOT_A_MODEL, "HTML"),
    "lfs-pointer": (Reason.NOT_A_MODEL, "LFS"),
    "empty": (Reason.NOT_A_MODEL, "empty"),
    "truncated": (Reason.DAMAGED_FILE, ""),
    "mismatch": (Reason.DIGEST_MISMATCH, "sha256"),
    "lora-as-checkpoint": (Reason.UNSUPPORTED_FORMAT, "LoRA"),
    "pickle": (Reason.UNSAFE_MODEL, "fromSafetensors"),
    "hostile": (Reason.UNSAFE_MODEL, ""),
    "half-a-lora": (Reason.CONVERSION_FAILED, "lora_up"),
    "lora-as-embedding": (Reason.UNSUPPORTED_FORMAT, "spec.modelType: lora"),
}


FEW = ("not-found", "refused", "login-page", "hostile", "half-a-lora")
CASES = [*FEW, *(pytest.param(c, marks=pytest.mark.slow) for c in EXPECTED if c not in FEW)]


@pytest.fixture(scope="module")
def selected(request: pytest.FixtureRequest) -> list[str]:
    """The cases of the tests that this run selects, or FEW if it selects none."""
    own = [item for item in request.session.items if item.path == request.path]
    chosen = {item.callspec.params.get("case") for item in own if hasattr(item, "callspec")}
    return [case for case in EXPECTED if case in chosen] or list(FEW)


@pytest.fixture(scope="module")
def bad(
    shared_operated: Operated, selected: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operated]:
    """One operator and the bad models."""
    operated = shared_operated
    work = tmp_path_factory.mktemp("bad")
    with FakeHub() as refused:
        specs = cases(operated.hub, refused, work, operated.checkpoints[0])
        for model in selected:
            operated.cluster.model(model, webhook=operated.receiver.url, **specs[model])
        yield operated


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_with_its_remedy(bad: Operated, case: str) -> None:
    """Conditions, an Event and the webhook have the reason or the remedy; nothing is published."""
    reason, detail = EXPECTED[case]
    item = bad.stalled(case, reason.value)
    ready = condition(item, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason.value)
    assert detail.lower() in ready["message"].lower()
    assert reason.remedy in ready["message"]
    assert (item["status"]["phase"], item["status"]["reason"]) == ("Failed", reason.value)
    assert "artifact" not in item["status"]
    bad.eventually(lambda: "ModelLoadFailed" in bad.reasons(case))
    (told,) = [text for why, text in bad.cluster.events(case) if why == "ModelLoadFailed"]
    assert told.startswith(f"{reason.value}: ")
    bad.eventually(lambda: "model.load_failed" in bad.receiver.events(case))
    (call,) = [
        call
        for call in bad.receiver.calls
        if call.body["model_id"] == case and call.body["event"] == "model.load_failed"
    ]
    assert call.body["status"] == "error"
    assert reason.remedy in call.body["message"]


def test_nothing_is_left_of_bad_input(bad: Operated, selected: list[str]) -> None:
    """When the resources are deleted, the volume is empty, and no code of a file has run."""
    for case in selected:
        bad.delete(case)
    for case in selected:
        bad.gone(case)
    assert bad.left() == []
    assert not list(bad.cluster.work.rglob("canary"))
