"""What the Pods of a test's cluster run: the loader, or stubloader.py where a test asks for it.

    python -I -S podloader.py COMMAND --request JSON --store STORE

A test asks by a file `stub` beside the volumes of its namespace. One API server serves both kinds
of tests this way.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Replace this process with the loader or with stubloader.py."""
    arguments = sys.argv[1:]
    store = Path(arguments[arguments.index("--store") + 1])
    stub = [str(Path(__file__).with_name("stubloader.py"))]
    program = stub if (store.parent / "stub").exists() else ["-P", "-m", "sd_loader"]
    os.execv(sys.executable, [sys.executable, *program, *arguments])


if __name__ == "__main__":
    main()
