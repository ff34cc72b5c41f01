"""The program in the Pods of a test's cluster: it runs the loader or stubloader.py.

    python -I -S podloader.py COMMAND --request JSON --store STORE

It runs stubloader.py if the test has put a file `stub` beside the volumes of its namespace. This
way one API server serves both kinds of tests.
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
