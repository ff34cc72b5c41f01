"""A server of files, and settings that allow it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.fakefiles import FileServer
from sd_loader.settings import Settings


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server of files on loopback."""
    with FileServer() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that allow loopback, and no other private address."""
    return Settings(
        allowed_hosts=frozenset({"127.0.0.1"}),
        hub_endpoint="https://hub.invalid",
        credentials_dir=tmp_path / "secret",
    )
