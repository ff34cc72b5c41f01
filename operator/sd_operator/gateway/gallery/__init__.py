"""The gallery: a namespace's models in the browser, served by the gateway under /gallery/."""

from __future__ import annotations

from sd_operator.gateway.gallery.routes import mount

__all__ = ["mount"]
