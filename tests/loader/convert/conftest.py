"""Fixtures of a tiny diffusers repo: one that all tests share, and copies that they may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models.tinyrepo import copy_repo, save_repo


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 repo in fp32, which tests must not change."""
    return save_repo(tmp_path_factory.mktemp("sd15") / "repo")


@pytest.fixture
def repo(sd15: Path, tmp_path: Path) -> Path:
    """A copy of `sd15` in hard links: tests may replace its files, but not write to them."""
    return copy_repo(sd15, tmp_path / "repo")
