"""What tests of the loader share: a Hub, containers, a place for a fetch, small volumes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from tests.support.loader.loadercli import Containers


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub and file server on loopback."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def containers(hub: FakeHub, tmp_path: Path) -> Containers:
    """Containers that may reach the Hub, with an empty volume."""
    return Containers.reaching(hub, tmp_path)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty source folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1.5 checkpoint in the original layout."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture
def slim(tmp_path: Path) -> dict[str, str]:
    """Environment of a loader in the slim image: this Python, without torch and its companions."""
    folder = tmp_path / "slim"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: "
        "None if name in ('torch', 'diffusers', 'transformers') else find(name, *rest)\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a volume with the given options, for example `size=1m`; skip where mount is refused."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        ended = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if ended.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {ended.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)
