"""A Hub with one repo, and settings that use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from sd_loader.settings import Settings
from tests.support.loader.hubfetches import REPO, write_repo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repo with all kinds of files that real repos have. A load needs only some of them."""
    return write_repo(tmp_path / "repo")


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    """A Hub with the repo `folder`. The Hub serves LFS files from another origin."""
    with FakeHub(separate_cdn=True) as hub:
        hub.add_repo(REPO, folder)
        yield hub


@pytest.fixture
def settings(hub: FakeHub, tmp_path: Path) -> Settings:
    """Settings with the fake Hub as endpoint; its CDN is an allowed host."""
    return Settings(
        hub_endpoint=hub.url,
        allowed_hosts=frozenset({hub.cdn_host}),
        credentials_dir=tmp_path / "secret",
    )
