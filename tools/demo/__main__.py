"""`make demo`: models loaded on this machine, without a cluster and without torch.

The demo runs the product itself: a real kubectl talks to the standalone server, the operator runs
in its own process, and each Job runs the loader as a process. Only the models are made up: they
have the structure of real ones with few, random weights.

`walk` loads two models, shows and checks each step, and ends. `gallery` (`--keep`) opens the
gallery with models of every type, until Ctrl-C. The exit code is 0 only if every step succeeds.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from tools.demo.gallery import open_gallery
from tools.demo.processes import DemoError, say
from tools.demo.walk import walk


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description="Load models end to end on this machine."
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="open the gallery with models of every type, until Ctrl-C",
    )
    keep = parser.parse_args().keep
    for signum in (signal.SIGINT, signal.SIGTERM):  # SIGTERM must stop the servers too
        signal.signal(signum, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sd-demo-")))
        try:
            (open_gallery if keep else walk)(work, stack)
        except KeyboardInterrupt:
            print("\nThe demo stops and removes its processes and files.", file=sys.stderr)
            return 130
        except DemoError as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            for log in sorted(work.glob("*.log")):
                print(f"\n--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
            return 1
    say("The demo succeeded: every step was checked. Its processes and files are gone.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
