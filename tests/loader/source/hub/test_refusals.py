"""Hub repos that the loader refuses before it downloads their weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sd_api.reasons import Reason
from tests.support.loader.hubfetches import NEEDED, REPO, UNET, load, refusal


@pytest.mark.parametrize("url", ["../name", "org/..", "org/-name", "org/name.git"])
def test_invalid_repo_ids_are_refused(hub, settings, into, url):
    """The load fails before it sends a request."""
    assert refusal(settings, into, url=url).reason is Reason.INVALID_SPEC
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "unet\\..\\x", "a//b", "unet/../../x", "."]
)
def test_repo_with_an_unsafe_file_name_is_refused(hub, settings, into, name):
    """The loader does not trust the Hub's file list."""
    hub.repos[REPO] = replace(hub.repos[REPO], extra_names=(name,))
    assert refusal(settings, into).reason is Reason.UNSAFE_MODEL
    assert list(into.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "reason", "words"),
    [
        pytest.param(
            ["model_index.json", "model.safetensors", "v1-5-pruned.ckpt"],
            Reason.UNSUPPORTED_FORMAT,
            "handler.py",
            id="no index",
        ),
        pytest.param(["unet/config.json"], Reason.UNSUPPORTED_FORMAT, "unet/con", id="no config"),
        pytest.param(
            [UNET, "unet/diffusion_pytorch_model.fp16.safetensors"],
            None,
            "",
            id="pickle instead",
        ),
        pytest.param(
            [
                UNET,
                "unet/diffusion_pytorch_model.bin",
                "unet/diffusion_pytorch_model.fp16.safetensors",
            ],
            Reason.UNSUPPORTED_FORMAT,
            "unet/model.onnx",
            id="no supported weights",
        ),
    ],
)
def test_incomplete_repo_is_refused(settings, into, folder, names, reason, words):
    """The message names files that the repo has. Pickled weights can stand in for safetensors."""
    for name in names:
        (folder / name).unlink()
    if reason is None:
        load(settings, into)
        return
    error = refusal(settings, into)
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_repo_with_code_is_refused_before_its_weights(hub, settings, into, folder):
    """The loader checks the pipeline's classes first."""
    index = json.loads(NEEDED["model_index.json"]) | {"unet": ["my_unet", "MyUNet"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert refusal(settings, into).reason is Reason.UNSAFE_MODEL
    assert hub.bytes_served < 10_000


def test_from_safetensors_refuses_a_repo_of_pickles(hub, settings, into, folder):
    """The load fails before it downloads any weights."""
    for name in (UNET, "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / name).unlink()
    assert refusal(settings, into, from_safetensors=True).reason is Reason.UNSAFE_MODEL
    assert hub.bytes_served < 10_000


def test_digest_for_a_repo_is_refused(hub, settings, into):
    """The message points to gitRevision, because a commit pins a repo."""
    error = refusal(settings, into, sha256="0" * 64)
    assert (error.reason, "gitRevision" in error.message) == (Reason.INVALID_SPEC, True)
    assert hub.requests == []
