"""Runs the loader's command line as the containers of a Job do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from devkit.fakehub import FakeHub
from sd_api.load import LoadRequest, Owner, RemoveRequest
from sd_api.loadhash import load_hash
from sd_api.reasons import ExitCode, Reason
from sd_api.spec import Spec
from sd_api.wire import Artifact, LoadResult
from sd_api.wording import message_at_shell, remedy_at_shell
from sd_loader.arguments import OF_JOBS
from tests.support.loader import inprocess

OWNER = Owner(uid="uid-1", namespace="ns", name="model")
NAMESAKE = Owner(uid="uid-2", namespace="ns", name="model")
STRANGER = Owner(uid="uid-3", namespace="other", name="model")
TIMEOUT = 240


@dataclass(frozen=True)
class Ended:
    """The exit code, output and termination message of a container that has ended."""

    code: int
    stdout: str
    stderr: str
    result: LoadResult | None
    by_hand: bool = False
    """Whether people run this command, so that its messages are worded for people."""


@dataclass
class Containers:
    """The loader's containers with one volume mounted; `folder` holds their other mounts."""

    store: Path
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    own_process: bool = False
    """Whether `run` starts a process, as a Pod does, instead of running in the tests' process."""

    @classmethod
    def reaching(cls, hub: FakeHub, folder: Path) -> Containers:
        """Return containers that may call this Hub, with an empty volume."""
        store = folder / "store"
        store.mkdir()
        env = {
            "SD_LOADER_ALLOWED_HOSTS": hub.host,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return cls(store, folder / "container", env)

    def in_own_process(self) -> Containers:
        """Return the same containers, each of which runs in its own process."""
        return replace(self, own_process=True)

    @property
    def credentials(self) -> Path:
        """Return the folder of the mounted Secret."""
        return self.folder / "secret"

    def start(
        self, *args: str | Path, pod: str = "pod", stderr: int = subprocess.PIPE, **env: str
    ) -> subprocess.Popen[str]:
        """Start a process for a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "sd_loader", *map(str, args)],
            env=self._environment(pod, env),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def run(self, *args: str | Path, pod: str = "pod", **env: str) -> Ended:
        """Run a command to its end."""
        if self.own_process:
            return self.end(self.start(*args, pod=pod, **env), pod)
        arguments = [str(arg) for arg in args]
        output = inprocess.run(arguments, self._environment(pod, env))
        return self._ended(output, arguments, pod)

    def end(self, process: subprocess.Popen[str], pod: str = "pod") -> Ended:
        """Wait until a command ends."""
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        output = inprocess.Output(process.returncode, stdout, stderr)
        return self._ended(output, cast("list[str]", process.args), pod)

    def _environment(self, pod: str, env: Mapping[str, str]) -> dict[str, str]:
        """Return only the environment variables that a Job sets."""
        self.folder.mkdir(exist_ok=True)
        given = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "SD_LOADER_POD": pod,
            "SD_LOADER_CREDENTIALS_DIR": str(self.credentials),
            "SD_LOADER_TERMINATION_LOG": str(self.message(pod)),
        }
        return {**given, **self.env, **env}

    def _ended(self, output: inprocess.Output, arguments: Sequence[str], pod: str) -> Ended:
        message = self.message(pod)
        text = message.read_text() if message.exists() else ""
        message.unlink(missing_ok=True)
        by_hand = OF_JOBS.isdisjoint(arguments)
        return Ended(output.code, output.stdout, output.stderr, LoadResult.decode(text), by_hand)

    def message(self, pod: str) -> Path:
        """Return the path of the Pod's termination message."""
        return self.folder / f"{pod}-message"

    def fetch(self, request: LoadRequest, **env: str) -> Ended:
        """Run the fetch container."""
        return self.run("fetch", *self.arguments(request), **env)

    def convert(self, request: LoadRequest, **env: str) -> Ended:
        """Run the convert container."""
        return self.run("convert", *self.arguments(request), **env)

    def load(self, request: LoadRequest, **env: str) -> Ended:
        """Run the containers of a loader Pod: convert runs only if fetch succeeds."""
        ended = self.fetch(request, **env)
        return ended if ended.code else self.convert(request, **env)

    def remove(self, owner: Owner = OWNER, *, retain: bool = False) -> Ended:
        """Run the clean-up container."""
        return self.run("remove", *self.arguments(remove_request(owner, retain=retain)))

    def arguments(self, request: LoadRequest | RemoveRequest) -> tuple[str, str, str, str]:
        """Return the arguments of a Job's container."""
        return "--request", request.to_argument(), "--store", str(self.store)


def failed(ended: Ended, reason: Reason, message: str, remedy: str | None = None) -> None:
    """Check that exit code, termination message and stderr all report this failure.

    remedy: what to do instead of the reason's remedy.
    """
    assert ended.result is not None, ended.stderr
    assert ended.result.outcome == "failed"
    assert (ended.result.reason, ended.code) == (reason, reason.exit_code), ended.stderr
    assert message in ended.result.message
    message, usual = ended.result.message, reason.remedy
    if ended.by_hand:
        message, usual = message_at_shell(message), remedy_at_shell(reason)
    assert f"error: {reason.value}: {message}" in ended.stderr
    assert f"what to do: {remedy or usual}" in ended.stderr


def artifact_of(ended: Ended) -> Artifact:
    """Return the artifact that the container reports as published."""
    assert ended.code == ExitCode.DONE, ended.stderr
    assert ended.result is not None
    assert ended.result.outcome == "loaded"
    assert ended.result.artifact is not None
    return ended.result.artifact


def load_request(
    url: str, owner: Owner = OWNER, *, reload: str | None = None, **fields: Any
) -> LoadRequest:
    """Return the request that the operator makes from a spec with this url."""
    credentials = fields.pop("credentials", False)
    spec = Spec(url=url, **{"model_id": "model", **fields})
    digest = load_hash(spec, owner.name, reload)
    return LoadRequest.from_spec(spec, owner, digest, credentials=credentials)


def remove_request(owner: Owner = OWNER, *, retain: bool = False) -> RemoveRequest:
    """Return the request that the operator makes for a deleted model."""
    return RemoveRequest(owner=owner, model_id="model", retain=retain)


def safetensors_bytes(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> bytes:
    """Return a safetensors file of fp16 zeros."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(offset)


OTHER = safetensors_bytes({"layer.weight": (4, 4)})
"""A file with tensors that do not belong to Stable Diffusion."""


def link_to(hub: FakeHub, checkpoint: Path) -> str:
    """Serve the checkpoint and return its link."""
    return hub.serve_file("/tiny.safetensors", checkpoint)
