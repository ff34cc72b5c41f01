"""Observes and disturbs the steps in which a process changes a volume.

A step is a call that changes the volume. Audit events of CPython (PEP 578) report most of them, so
no list of call sites is needed. CPython does not audit the calls that write bytes or sync them, so
`watch` wraps those functions of `os`. Writes through Python's own buffers are not steps: they go to
a file with a temporary name until the file is synced and renamed, and those calls are steps. On
request, opening a file for reading is a step too, for code that decides by what it reads.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

OnStep = Callable[[int, str], None]

_AUDITED = frozenset(
    {
        "os.chmod",
        "os.chown",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
        "os.symlink",
        "os.truncate",
        "os.utime",
    }
)
_UNAUDITED = (
    "copy_file_range",
    "fdatasync",
    "fsync",
    "posix_fallocate",
    "pwrite",
    "pwritev",
    "sendfile",
    "write",
    "writev",
)
_WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TAKE_NO_SPACE = frozenset({"os.remove", "os.rmdir", "os.rename", "os.chmod", "os.utime"})
KILLED = -signal.SIGKILL


def watch(root: Path, on_step: OnStep, *, reads: bool = False) -> None:
    """Call `on_step` before each step of this process on the volume, until the process ends.

    The callback gets the step's number and name. An error that it raises becomes the error of
    the call. With `reads`, opening a file for reading is a step too.
    """
    numbers = itertools.count()
    busy = False

    def step(name: str) -> None:
        nonlocal busy
        if busy:
            return  # the callback's own calls
        number, busy = next(numbers), True
        try:
            on_step(number, name)
        finally:
            busy = False

    def audited(event: str, args: tuple[Any, ...]) -> None:
        is_step = event in _AUDITED or (event == "open" and (reads or args[2] & _WRITABLE))
        if (is_step and _is_on(root, args[0])) or _is_reservation(event, args):
            step(event)

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            step(f"os.{name}")
            return original(*args, **kwargs)

        return call

    for name in _UNAUDITED:
        setattr(os, name, wrapped(name, getattr(os, name)))
    sys.addaudithook(audited)


def _is_reservation(event: str, args: tuple[Any, ...]) -> bool:
    """Return whether the loader is about to call fallocate, which Python's `os` lacks."""
    return event == "ctypes.dlsym" and args[1] == "fallocate"


def _is_on(root: Path, path: object) -> bool:
    """Return whether a path may be on the volume: below it, or relative to an open folder."""
    if isinstance(path, int):
        return False  # a file descriptor; opening it was a step
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    return not name.startswith("/") or name.startswith((f"{root}/", "/proc/self/fd/"))


def start(run: Callable[[], int]) -> int:
    """Run a function in a child process and return the child's id."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = run()
        except BaseException:  # noqa: BLE001 - the child must never return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def end(child: int) -> int:
    """Return a child's exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def steps_of(run: Callable[[], int], root: Path, *, reads: bool = False) -> list[str]:
    """Return the names of the steps of an undisturbed run."""
    record = root.with_name(f"{root.name}-steps")
    with record.open("wb", buffering=0) as file:

        def watched() -> int:
            watch(root, lambda _, name: print(name, file=text), reads=reads)
            code = run()
            text.flush()
            return code

        with open(file.fileno(), "w", closefd=False) as text:
            assert end(start(watched)) == 0
    names = record.read_text().splitlines()
    record.unlink()
    return names


def killed_at(step: int) -> OnStep:
    """Return a callback that kills the process with SIGKILL before a step."""

    def on_step(number: int, _: str) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def refused_once(step: int, code: int) -> OnStep:
    """Return a callback that makes one step fail with an error; `code` is its errno."""

    def on_step(number: int, _: str) -> None:
        if number == step:
            raise OSError(code, os.strerror(code))

    return on_step


def refused_from(step: int, code: int) -> OnStep:
    """Return a callback that makes all steps from this one on fail; `code` is the errno.

    ENOSPC spares steps that need no space.
    """

    def on_step(number: int, name: str) -> None:
        if number >= step and not (code == errno.ENOSPC and name in _TAKE_NO_SPACE):
            raise OSError(code, os.strerror(code))

    return on_step


def held_at(step: int, reached: int, go_on: int) -> OnStep:
    """Return a callback that holds a step: it closes `reached`, then waits for `go_on`.

    Both are file descriptors of pipes; `go_on` lets the step happen with one byte, or its end.
    """

    def on_step(number: int, _: str) -> None:
        if number == step:
            os.close(reached)
            os.read(go_on, 1)

    return on_step
