"""Fixtures of the tests of Civitai: a Civitai on loopback, and settings that name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.fakecivitai import FakeCivitai
from sd_loader.settings import Settings


@pytest.fixture
def civitai() -> Iterator[FakeCivitai]:
    """A Civitai on loopback."""
    with FakeCivitai() as server:
        yield server


@pytest.fixture
def settings(civitai: FakeCivitai, tmp_path: Path) -> Settings:
    """Settings of a loader that may reach this Civitai, with a folder for a Secret."""
    return Settings(
        civitai_endpoint=civitai.url,
        allowed_hosts=frozenset({civitai.host, civitai.cdn_host}),
        credentials_dir=tmp_path / "secret",
    )
