"""The loader's entry point: reads the arguments, then runs the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sd_loader import arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return its exit code."""
    _replace_closed_output()
    args = arguments.parser().parse_args(argv)
    # The loader uses no plugins. To find some, pydantic would read every package's metadata.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # The loader multiplies no matrices. numpy's library for them would start a thread on each core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Imported here: `--help` and `--version` end in the line above and do not wait for it.
    from sd_loader.running import run

    return run(args)


def _replace_closed_output() -> None:
    """Discard what is written to stdout or stderr if a shell has closed it, as `>&-` does."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - kept open


if __name__ == "__main__":
    sys.exit(main())
