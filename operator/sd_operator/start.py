"""The entry points of the commands. If a package is missing, they name the extra to install."""

from __future__ import annotations

from sd_api.extras import start


def operator() -> int:
    """Run `sd-operator`."""
    return start("sd-operator", "sd_operator.__main__", "operator")


def gateway() -> int:
    """Run `sd-gateway`."""
    return start("sd-gateway", "sd_operator.gateway.__main__", "gateway")


def plugin() -> int:
    """Run `kubectl sdm`."""
    return start("kubectl sdm", "sd_operator.cli.__main__", "cli")


def completion() -> int:
    """Complete `kubectl sdm` in the shell."""
    return start("kubectl sdm", "sd_operator.cli.completion", "cli")
