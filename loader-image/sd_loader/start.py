"""The entry point of the command, which says which extra is missing."""

from __future__ import annotations

from sd_api.extras import start


def loader() -> int:
    """Run `sd-loader`."""
    return start("sd-loader", "sd_loader.__main__", "loader")
