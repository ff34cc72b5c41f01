"""Installs packages with pip, and shows on one line what pip does.

    python -m tools.install --editable ".[gateway]"

The arguments are those of `pip install`. pip itself prints about a hundred lines or, with --quiet,
nothing for a minute. On a terminal this program shows one line, which it keeps up to date.
Elsewhere, for example in a CI log, it prints one line at the start and one at the end. If pip
fails, its whole output follows. This program needs only the standard library.
"""

from __future__ import annotations

import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

TICK_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run pip and return its exit code."""
    return follow([sys.executable, "-m", "pip", "install", *arguments], sys.stdout)


@dataclass
class Progress:
    """What pip has done, read from its output."""

    packages: set[str] = field(default_factory=set)
    doing: str = "starting"

    def read(self, line: str) -> None:
        """Update the progress from a line of pip's output."""
        words = line.strip()
        if match := re.match(r"Collecting ([\w.-]+)", words):
            self.packages.add(match[1])
            self.doing = f"looking for {match[1]}"
        elif match := re.match(r"Downloading ([\w.-]+?)-\d\S*\.(?:whl|tar\.gz) (\(.+\))$", words):
            self.doing = f"downloading {match[1]} {match[2]}"
        elif match := re.match(r"Building (?:wheel|editable) for ([\w.-]+)", words):
            self.doing = f"building {match[1]}"
        elif words.startswith("Installing collected packages: "):
            count = words.count(",") + 1
            self.doing = f"unpacking {_packages(count)}, which takes longest"

    def text(self, seconds: float) -> str:
        """Return the line to show."""
        found = _packages(len(self.packages))
        return f"Installing: {found} found, {self.doing} ({seconds:.0f} s)"


def _packages(count: int) -> str:
    return "1 package" if count == 1 else f"{count} packages"


def follow(command: Sequence[str], out: IO[str]) -> int:
    """Run pip's command, show its progress, and return its exit code."""
    started = time.monotonic()
    live = out.isatty()
    if not live:
        print("Installing packages, which takes about a minute", file=out, flush=True)
    progress, printed = Progress(), []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in _lines_or_ticks(process.stdout or ()):
            if line is not None:
                printed.append(line)
                progress.read(line)
            if live:
                text = progress.text(time.monotonic() - started)
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\033[K{text[:width]}", end="", file=out, flush=True)
    if live:
        print("\r\033[K", end="", file=out)
    if process.returncode:
        print("".join(printed), end="", file=out)
        print("pip failed; its output is above", file=out, flush=True)
    else:
        seconds = time.monotonic() - started
        print(f"Installed {_packages(len(progress.packages))} in {seconds:.0f} s", file=out)
    return process.returncode


def _lines_or_ticks(lines: Iterable[str]) -> Iterator[str | None]:
    """Yield the lines as they come, and None after each second without a line."""
    arrived: queue.Queue[str | None] = queue.Queue()

    def receive() -> None:
        for line in lines:
            arrived.put(line)
        arrived.put(None)

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    while True:
        try:
            line = arrived.get(timeout=TICK_SECONDS)
        except queue.Empty:
            yield None
        else:
            if line is None:
                break
            yield line
    receiver.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
