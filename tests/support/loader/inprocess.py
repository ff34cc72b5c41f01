"""Runs the loader's command line in the tests' own process.

A new interpreter would spend most of its time on imports. Use one (`Containers.in_own_process`) if
the process itself is tested: signals, its real stdout, or the modules that it imports.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

import pytest

from sd_loader.__main__ import main


@dataclass(frozen=True)
class Output:
    """The exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


def run(arguments: Sequence[str], env: Mapping[str, str]) -> Output:
    """Run a command with only these environment variables."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with _restored(env), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse ends the process itself
            code = int(ended.code or 0)
    return Output(code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def slim_image() -> Iterator[None]:
    """Let Python find neither torch nor diffusers nor transformers, as in the slim image."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torch", "diffusers", "transformers"):
            patch.setitem(sys.modules, name, None)
        yield


@contextmanager
def _restored(env: Mapping[str, str]) -> Iterator[None]:
    """Set the environment, and give the loader a process without log handlers.

    Afterwards, restore what the loader changes in its process.
    """
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    umask = os.umask(0)
    os.umask(umask)
    root = logging.getLogger()
    level = root.level
    try:
        with (
            mock.patch.dict(os.environ, env, clear=True),
            mock.patch.object(root, "handlers", []),
        ):
            yield
    finally:
        root.setLevel(level)
        os.umask(umask)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
