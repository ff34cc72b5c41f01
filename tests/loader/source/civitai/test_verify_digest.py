"""verifyDigest limits the cost of comparing a file with the SHA-256 that Civitai states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.ldm_layouts import sd15_shapes
from devkit.tiny import SMALLEST_SD15, write_checkpoint
from sd_api.choices import VerifyDigest
from sd_loader import streaming
from sd_loader.settings import Settings
from tests.support.loader.fetches import fetch
from tests.support.loader.linkfetches import request

UNNEEDED = 5 << 20
"""Bytes of the checkpoint that its conversion leaves out."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a copy of weights that its load does not need."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_checkpoint(path, {**sd15_shapes(SMALLEST_SD15), "model_ema.rest": (UNNEEDED // 2,)})
    return path


@pytest.mark.parametrize(
    ("verify", "limit", "compared"),
    [
        pytest.param(VerifyDigest.WHEN_WHOLE, UNNEEDED - 1, False, id="too_much_to_fetch"),
        pytest.param(
            VerifyDigest.WHEN_WHOLE,
            2 * UNNEEDED,
            True,
            id="little_to_fetch",
            marks=pytest.mark.slow,
        ),
        pytest.param(VerifyDigest.ALWAYS, 0, True, id="always", marks=pytest.mark.slow),
    ],
)
def test_the_stated_digest_is_compared_unless_that_costs_too_much(
    civitai: FakeCivitai,
    settings: Settings,
    checkpoint: Path,
    into: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verify: VerifyDigest,
    limit: int,
    compared: bool,
) -> None:
    """Without the comparison, only the needed ranges are downloaded, and a warning states this."""
    monkeypatch.setattr(streaming, "UNNEEDED_BYTES", limit)
    civitai.add(Model(7, "Checkpoint", [Version(71, [File(700, checkpoint)])]))
    out = tmp_path / "out"
    out.mkdir()

    fetched = fetch(
        request("https://civitai.com/models/7"),
        replace(settings, verify_digest=verify),
        into,
        out=out,
    )

    assert fetched.converted is not None
    source, size = fetched.source, checkpoint.stat().st_size
    assert (source.sha256 is not None, source.sha256_missing) == (
        compared,
        None if compared else "RangesOnly",
    )
    assert ("sha256 not compared: ranges only" in fetched.warnings) is not compared
    assert (civitai.bytes_served >= size) is compared
