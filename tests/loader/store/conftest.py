"""Volumes, and Pods that work on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_loader.store.volume import Volume
from tests.support.store.madeup import Parts
from tests.support.store.pods import install_tagged_parts


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """An empty volume."""
    with Volume.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def tagged_parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Let Pods load fake files whose content names the load."""
    return install_tagged_parts(monkeypatch)
