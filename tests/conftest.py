"""Fixtures that tests share."""

from __future__ import annotations

from cluster import (
    backend,
    cluster,
    shared_cluster,
    shared_stub_cluster,
    stub_backend,
    stub_cluster,
)
from loadercli import slim
from operated import checkpoints, operated
from operators import behind
from tally import pytest_terminal_summary, tally
from volumes import tmpfs

__all__ = [
    "backend",
    "behind",
    "checkpoints",
    "cluster",
    "operated",
    "pytest_terminal_summary",
    "shared_cluster",
    "shared_stub_cluster",
    "slim",
    "stub_backend",
    "stub_cluster",
    "tally",
    "tmpfs",
]
