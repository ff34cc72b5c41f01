"""The programs that the demo runs: the standalone server, kubectl and the loader."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sd_api.status import ConditionType
from tools.kubectl import kubectl_path

DEADLINE_SECONDS = 90
STOP_SECONDS = 30


class DemoError(Exception):
    """A step of the demo failed."""


@contextlib.contextmanager
def standalone(work: Path, allowed_hosts: Sequence[str], env: Mapping[str, str]) -> Iterator[Path]:
    """Run the standalone server until the context ends; yield its kubeconfig.

    allowed_hosts: hosts that loads and webhooks may call on this machine.
    """
    kubeconfig = work / "kubeconfig"
    command = (
        "sd-operator",
        "standalone",
        *("--store", str(work / "store")),
        "--ephemeral",
        *("--kubeconfig", str(kubeconfig)),
        *("--allowed-hosts", ",".join(allowed_hosts)),
    )
    with running(command, work / "standalone.log", env, until=kubeconfig.exists):
        yield kubeconfig


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, env: Mapping[str, str], until: Callable[[], bool]
) -> Iterator[None]:
    """Start a server, wait until it is ready, and stop it when the context ends."""
    name = log.stem
    with log.open("w") as output:
        process = subprocess.Popen(
            [*script(command[0]), *command[1:]],
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not until():
            expect(process.poll() is None, f"{name} exited before it was ready")
            expect(time.monotonic() < deadline, f"{name} was not ready after {DEADLINE_SECONDS} s")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # The server's own child processes end with it.
            process.wait()


class Kubectl:
    """Runs a real kubectl against the standalone server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(kubectl_path()), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str) -> str:
        """Run a kubectl command and return its output."""
        return run(*self._command, *arguments)

    def show(self, *arguments: str) -> None:
        """Run a kubectl command; print the command and its output."""
        print(f"    $ kubectl {' '.join(arguments)}")
        print(textwrap.indent(self.run(*arguments), "    "))

    def models(self) -> dict[str, dict[str, Any]]:
        """Return all models from the server, by name."""
        listed = json.loads(self.run("get", "sdm", "-o", "json"))
        return {model["metadata"]["name"]: model for model in listed["items"]}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Let `kubectl get sdm -w` print until the context ends."""
        watch = subprocess.Popen([*self._command, "get", "sdm", "-w"])
        try:
            yield
        finally:
            watch.terminate()
            watch.wait(10)


def condition(model: dict[str, Any], kind: ConditionType) -> dict[str, Any]:
    """Return a condition of a model, empty if the model does not have it."""
    conditions = model.get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), {})


def is_ready(model: dict[str, Any]) -> bool:
    """Return whether the model is Ready; raise DemoError if it has the condition Stalled."""
    stalled = condition(model, ConditionType.STALLED)
    expect(
        not stalled,
        f"{model['metadata']['name']}: {stalled.get('reason')}: {stalled.get('message')}",
    )
    return bool(condition(model, ConditionType.READY).get("status") == "True")


def run(*command: str | Path) -> str:
    """Run a command to its end and return its output; raise DemoError if it fails."""
    name, *arguments = (str(part) for part in command)
    done = subprocess.run(
        [*script(name), *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    expect(done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def script(name: str) -> list[str]:
    """Return the command of a program: from this Python environment if possible, else from PATH."""
    local = Path(sys.executable).parent / name
    return [str(local)] if local.exists() else [name]


def expect(truth: bool, otherwise: str) -> None:
    """Raise DemoError with the message `otherwise` if `truth` is false."""
    if not truth:
        raise DemoError(otherwise)


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def relative(path: Path) -> Path:
    """Return a path in the working directory relative to it; return other paths unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
