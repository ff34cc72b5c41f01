"""Fixtures that the loader's tests share: Hub, settings, containers, folders, small volumes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from devkit.ldm_layouts import sd15_shapes
from devkit.tiny import SMALLEST_SD15, write_checkpoint
from sd_loader.settings import Settings
from tests.support.loader.inprocess import slim_image
from tests.support.loader.loadercli import Containers


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub and file server on loopback."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def settings(hub: FakeHub, tmp_path: Path) -> Settings:
    """Settings of a loader that may reach the Hub, with a folder for a Secret."""
    return Settings(
        hub_endpoint=hub.url,
        allowed_hosts=frozenset({hub.host}),
        credentials_dir=tmp_path / "secret",
    )


@pytest.fixture
def containers(hub: FakeHub, tmp_path: Path) -> Containers:
    """Containers that may reach the Hub, with an empty volume."""
    return Containers.reaching(hub, tmp_path)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty folder to download a source into."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a distilled SD 1.5 in the original layout, 24 MB."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    write_checkpoint(path, sd15_shapes(SMALLEST_SD15))
    return path


@pytest.fixture
def slim() -> Iterator[None]:
    """The slim image: Python finds neither torch nor diffusers nor transformers."""
    with slim_image():
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, because other tests run at the same time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a tmpfs with options such as `size=1m`, and returns its folder.

    The function skips the test if mounting is not permitted. The fixture unmounts the tmpfs.
    """
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
