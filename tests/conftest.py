"""Fixtures that tests share."""

from __future__ import annotations

from cluster import backend, cluster, stub_backend, stub_cluster

__all__ = ["backend", "cluster", "stub_backend", "stub_cluster"]
