"""Fixtures that tests share."""

from __future__ import annotations

from tests.support.gateway.browser import browser
from tests.support.gateway.gallerysite import gallery, site, stranger
from tests.support.gateway.gatewayrun import gateway
from tests.support.kube.backends import (
    backend,
    cluster,
    shared_cluster,
    shared_stub_cluster,
    stub_backend,
    stub_cluster,
)
from tests.support.loader.loadercli import slim
from tests.support.operator.operated import checkpoints, operated
from tests.support.operator.operators import behind
from tests.support.store.volumes import tmpfs, volume
from tests.support.tally import pytest_terminal_summary, tally

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
