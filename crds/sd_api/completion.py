"""The option `--print-completion SHELL`: prints the script that completes a command in a shell.

shtab makes the script from the parser; it is installed with the extra `shell`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")


class _Print(argparse.Action):
    """Prints the script and ends the command."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002 - argparse passes it
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002 - argparse passes it
    ) -> None:
        """Print the script for the shell that the option names."""
        try:
            import shtab
        except ModuleNotFoundError:
            parser.exit(
                1,
                f"{parser.prog}: the package shtab is not installed; it belongs to the extra"
                " `shell`: in a clone of the repository, run"
                " pip install -c constraints.txt '.[shell]'\n",
            )
        _complete_paths(parser, shtab.FILE, shtab.DIRECTORY)
        print(shtab.complete(parser, str(values)))
        parser.exit()


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command's parser."""
    parser.add_argument(
        "--print-completion",
        action=_Print,
        choices=SHELLS,
        help="print the script that completes this command in the shell",
    )


def _complete_paths(parser: argparse.ArgumentParser, file: object, folder: object) -> None:
    """Mark the arguments that are paths, so that the shell offers files or folders for them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, file, folder)
        elif action.type is Path:
            action.complete = folder if action.metavar == "DIR" else file  # type: ignore[attr-defined]
