"""Fixtures that tests share."""

from __future__ import annotations

from backends import (
    backend,
    cluster,
    shared_cluster,
    shared_stub_cluster,
    stub_backend,
    stub_cluster,
)
from browser import browser
from gallerysite import gallery, site, stranger
from gatewayrun import gateway
from loadercli import slim
from operated import checkpoints, operated
from operators import behind
from tally import pytest_terminal_summary, tally
from volumes import tmpfs, volume

__all__ = [
    "backend",
    "behind",
    "browser",
    "checkpoints",
    "cluster",
    "gallery",
    "gateway",
    "operated",
    "pytest_terminal_summary",
    "shared_cluster",
    "shared_stub_cluster",
    "site",
    "slim",
    "stranger",
    "stub_backend",
    "stub_cluster",
    "tally",
    "tmpfs",
    "volume",
]
