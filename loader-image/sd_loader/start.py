"""The entry point of `sd-loader`. If a package is missing, it names the extra to install."""

from __future__ import annotations

from sd_api.extras import start


def loader() -> int:
    """Run `sd-loader`."""
    return start("sd-loader", "sd_loader.__main__", "loader")
