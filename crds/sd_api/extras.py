"""Starts a command. Reports a package that is not installed, and a Ctrl-C during the imports."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module

_OURS = ("sd_api", "sd_operator", "sd_loader")
KILLED = 128
"""If a signal ends a process, its exit code in shells is this number plus the signal's number."""


def start(command: str, module: str, extra: str) -> int:
    """Run the `main` of a module and return its exit code.

    If a package is missing, print which extra of the project has it, and return 1.
    """
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
