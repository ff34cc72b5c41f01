"""Fixtures: operators behind a proxy that disturbs their requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kube.cluster import Cluster
from tests.support.operator.operators import Behind, behind_proxy


@pytest.fixture
def behind(stub_cluster: Cluster, tmp_path: Path) -> Iterator[Behind]:
    """Operators that the test starts; stubloader.py replaces the loader in their Pods."""
    with behind_proxy(stub_cluster, tmp_path) as made:
        yield made
