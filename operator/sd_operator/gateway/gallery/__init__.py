"""The gallery: web pages of a namespace's models, which the gateway serves under /gallery/."""

from __future__ import annotations

from sd_operator.gateway.gallery.routes import mount

__all__ = ["mount"]
