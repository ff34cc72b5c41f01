"""Fixtures that tests share."""

from __future__ import annotations

from cluster import backend, cluster

__all__ = ["backend", "cluster"]
