"""Fixture: Pods that publish fake files on a volume."""

from __future__ import annotations

import pytest

from tests.support.store.madeup import Parts
from tests.support.store.pods import install_tagged_parts


@pytest.fixture
def tagged_parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Replace downloads and conversions by made-up files that name their load."""
    return install_tagged_parts(monkeypatch)
