"""Where a fetch puts its files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty source folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder
