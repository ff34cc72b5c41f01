"""Runs the containers of Pods. A container may run only the loader, on a request that is valid."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sd_api.check import CheckRequest
from sd_api.load import LoadRequest, RemoveRequest, Request
from sd_api.loader_env import LoaderEnv
from sd_operator.standalone.errors import Json

LOADER = (sys.executable, "-I", "-m", "sd_loader")
"""With -I, Python takes no code from a container's variables, working folder or home folder."""
REQUESTS: dict[str, type[Request]] = {
    "fetch": LoadRequest,
    "convert": LoadRequest,
    "remove": RemoveRequest,
    "check": CheckRequest,
}
VARIABLES = LoaderEnv.every_name()
TERMINATION_LOG = LoaderEnv.name_of("termination_log")
PATHS = LoaderEnv.path_names()
_PR_SET_PDEATHSIG = 1


class RefusedError(Exception):
    """Standalone does not run this container. The message says why."""


@dataclass(frozen=True)
class Mounts:
    """The folders of this machine that stand for the paths of a container."""

    paths: Mapping[str, Path]
    """The folder or file of this machine for each mount path."""
    root: Path
    """The folder that stands for all other paths; a container finds nothing there."""
    claims: frozenset[str] = frozenset()
    """The mount paths of PersistentVolumeClaims."""

    def translate(self, text: str) -> str:
        """Translate a container's path to a path of this machine; return other text unchanged."""
        for mount in sorted(self.paths, key=len, reverse=True):
            if text == mount or text.startswith(f"{mount}/"):
                return f"{self.paths[mount]}{text.removeprefix(mount)}"
        return text

    def locate(self, path: str) -> str:
        """Translate a container's path to a path on its volumes, or else below `root`."""
        text = self.translate(path)
        target = Path(os.path.normpath(text))
        if any(target.is_relative_to(folder) for folder in self.paths.values()):
            return text
        return f"{self.root}{os.path.normpath('/' + path.lstrip('/'))}"


def loader_arguments(container: Json, mounts: Mounts) -> list[str]:
    """Return the loader's arguments, with the path of the store on this machine.

    Raise RefusedError if the container runs anything else, if its request is not valid, or if its
    store is not a PVC.
    """
    match [*container.get("command", ()), *container.get("args", ())]:
        case ["sd-loader", command, "--request", request, "--store", store] if command in REQUESTS:
            pass
        case ["sd-loader", "sweep", "--store", store, "--delete"]:
            return ["sweep", "--store", _claim(store, mounts), "--delete"]
        case argv:
            raise RefusedError(
                "standalone runs only `sd-loader fetch|convert|remove|check --request JSON --store"
                " PATH` and `sd-loader sweep --store PATH --delete`,"
                f" not {' '.join(map(str, argv))[:200]!r}"
            )
    try:
        REQUESTS[command].from_argument(request)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3]
        )
        raise RefusedError(
            f"the request of `sd-loader {command}` is not valid: {faults}"
        ) from error
    return [command, "--request", request, "--store", _claim(store, mounts)]


def _claim(store: str, mounts: Mounts) -> str:
    """Return the folder of this machine for a PVC that is mounted at a path of the container."""
    if store not in mounts.claims:
        raise RefusedError(f"--store {store}: no PersistentVolumeClaim is mounted at this path")
    return mounts.translate(store)


def environment(container: Json, pod: Json, mounts: Mounts) -> dict[str, str]:
    """Return the container's variables with paths translated to this machine.

    The container inherits nothing from this process. It always gets PATH. It may set only the
    variables of a loader Job, because others, such as PYTHONPATH, can name code of this machine.
    Raise RefusedError for any other variable, and for a value that standalone does not support.
    """
    result = {"PATH": os.defpath}
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"].get("namespace", ""),
        "metadata.uid": pod["metadata"]["uid"],
    }
    for variable in container.get("env", ()):
        name = variable["name"]
        if name not in VARIABLES:
            raise RefusedError(
                f"env {name[:80]}: standalone sets only the variables of a loader Job:"
                f" {', '.join(sorted(VARIABLES))}"
            )
        source = variable.get("valueFrom", {})
        path = source.get("fieldRef", {}).get("fieldPath")
        if path in fields:
            value = fields[path]
        elif source:
            raise RefusedError(
                f"env {name}: valueFrom may refer to these fields only: {', '.join(fields)}"
            )
        else:
            value = variable.get("value", "")
        own_log = container["terminationMessagePath"]
        if name == TERMINATION_LOG and value not in ("", own_log):
            raise RefusedError(f"env {name}: must be the terminationMessagePath {own_log}")
        is_path = name in PATHS and value
        result[name] = mounts.locate(value) if is_path else mounts.translate(value)
    return result


class Process:
    """A running container: a process with its own process group.

    On Linux, the kernel kills the process when standalone ends. It does not kill others of the
    group: the loader's only one, the decoder of a picture, ends by itself within seconds, because
    its pipes break and its CPU time is limited.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], folder: Path, log: Path
    ) -> Process:
        """Start a command in a folder and append its output to the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                cwd=folder,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return cls(process)

    async def wait(self) -> int:
        """Wait for the end; return the exit code, or 128 plus the signal that ended the process."""
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def stop(self, grace: float) -> None:
        """Send SIGTERM to the process group, and SIGKILL once its first process has ended.

        The group gets SIGKILL at the latest `grace` seconds after SIGTERM.
        """
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace)
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
