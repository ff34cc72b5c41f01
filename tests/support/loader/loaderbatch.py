"""Runs many loader command lines, each in a process that is forked from one parent.

A new interpreter for each line would take most of the time. Each process has limits like a Pod's,
and its memory and time are measured.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CPU_SECONDS = 8
"""The most CPU time that a test allows a process; the kernel kills it a second later.

The slowest file takes 3.5 s on a quiet core, and up to 6 s if the core's other thread is busy.
"""
SECONDS = 60
ADDRESSES = 2 << 30
"""The limit of the address space in bytes; it protects the machine from hostile files."""


@dataclass(frozen=True)
class Line:
    """A command line, and the folder that it runs in and writes its output to."""

    folder: Path
    arguments: Sequence[str]
    anew: bool = False
    """Whether to start a new interpreter, as a user does, instead of a fork."""


@dataclass(frozen=True)
class Ran:
    """The result of a command line."""

    code: int
    output: str
    memory: int
    """The peak of the resident memory, in bytes."""
    seconds: float
    """The CPU time that the process used."""


def run_lines(lines: Sequence[Line], env: Mapping[str, str]) -> list[Ran]:
    """Run the lines one after the other, each in its own process."""
    jobs = "\n".join(
        json.dumps([str(line.folder), list(line.arguments), line.anew]) for line in lines
    )
    done = subprocess.run(
        [sys.executable, __file__], input=jobs, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        Ran(code, (line.folder / f"output of {line.arguments[0]}").read_text(), memory, seconds)
        for line, (code, memory, seconds) in zip(lines, ended, strict=True)
    ]


def main(jobs: Sequence[str]) -> None:
    """Fork a process per job; print the results in the order of the jobs."""
    parsed = [json.loads(job) for job in jobs]
    ended: dict[int, Any] = {}
    # New interpreters come first: a later child would count this process's memory as its own.
    for number, (folder, arguments, anew) in sorted(
        enumerate(parsed), key=lambda job: not job[1][2]
    ):
        if not anew:
            _import_loader()
        process = os.fork()
        if process == 0:
            _limit(folder, arguments[0])
            if anew:
                os.execv(sys.executable, [sys.executable, "-m", "sd_loader", *arguments])
            from sd_loader.__main__ import main as load

            os._exit(load(arguments))
        _, status, usage = os.wait4(process, 0)
        seconds = usage.ru_utime + usage.ru_stime
        ended[number] = os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10, seconds
    sys.stdout.writelines(json.dumps(ended[number]) + "\n" for number in range(len(parsed)))


@cache
def _import_loader() -> None:
    import sd_loader

    for module in pkgutil.walk_packages(sd_loader.__path__, "sd_loader."):
        if not module.name.startswith("sd_loader.render"):  # it imports torch
            importlib.import_module(module.name)


def _limit(folder: str, command: str) -> None:
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 1, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    os.chdir(folder)
    sys.path.insert(0, folder)
    output = os.open(f"output of {command}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)


if __name__ == "__main__":
    main(sys.stdin.readlines())
