"""A tiny diffusers repo."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models.tinyrepo import copy_repo, save_repo


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 repo in fp32, which tests only read."""
    return save_repo(tmp_path_factory.mktemp("sd15") / "repo")


@pytest.fixture
def repo(sd15: Path, tmp_path: Path) -> Path:
    """A copy of the repo, whose files a test may replace."""
    return copy_repo(sd15, tmp_path / "repo")
