"""Starts a command whose packages may not be installed, and which may be stopped meanwhile."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module

_OURS = ("sd_api", "sd_operator", "sd_loader")
KILLED = 128
"""If a signal ends a process, shells report this number plus the signal's as its exit code."""


def start(command: str, module: str, extra: str) -> int:
    """Run the `main` of a module, or say which extra of the project has the missing package."""
    try:
        main: Callable[[], int] = import_module(module).main
        return main()
    except KeyboardInterrupt:  # Ctrl-C before the command handles it
        print(f"{command}: stopped by SIGINT", file=sys.stderr)
        return KILLED + signal.SIGINT
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        print(
            f"{command}: the package {package} is not installed; it belongs to the extra"
            f" `{extra}`: in a clone of the repository, run"
            f" pip install -c constraints.txt '.[{extra}]'",
            file=sys.stderr,
        )
        return 1
