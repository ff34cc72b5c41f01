"""What the loader says of a volume that is full or read-only, and how little space it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from sd_api.reasons import ExitCode, Reason
from tests.support.loader.loadercli import OTHER, Containers, failed, load_request


def test_a_read_only_volume_is_named(
    containers: Containers, hub: FakeHub, tmpfs: Callable[..., Path]
) -> None:
    """Nothing is downloaded for a volume that nothing can be put on."""
    containers.store = tmpfs("ro")
    ended = containers.load(load_request(hub.serve_file("/model.safetensors", OTHER)))
    failed(ended, Reason.VOLUME_NOT_WRITABLE, "Read-only")
    assert hub.requests == []


@pytest.mark.parametrize("size", ["20m", "50m"], ids=["for the download", "for the conversion"])
def test_a_full_disk_is_named_and_freed(
    containers: Containers,
    hub: FakeHub,
    tmpfs: Callable[..., Path],
    tmp_path: Path,
    size: str,
) -> None:
    """A load that does not fit gives back what it took."""
    containers.store = tmpfs(f"size={size}")
    write_checkpoint(tmp_path / "tiny.safetensors")  # 34 MB
    link = hub.serve_file("/model.safetensors", tmp_path / "tiny.safetensors", ignore_range=True)
    failed(containers.load(load_request(link)), Reason.INSUFFICIENT_STORAGE, "")
    assert list(containers.store.iterdir()) == []


def test_a_streamed_load_needs_no_space_but_its_own(
    containers: Containers, hub: FakeHub, tmpfs: Callable[..., Path], tmp_path: Path
) -> None:
    """A volume of 40 MB holds a model of 34 MB; one of 20 MB is refused before the weights come."""
    write_checkpoint(tmp_path / "tiny.safetensors")
    link = hub.serve_file("/model.safetensors", tmp_path / "tiny.safetensors")
    containers.store = tmpfs("size=20m")
    failed(containers.load(load_request(link)), Reason.INSUFFICIENT_STORAGE, "needs")
    assert list(containers.store.iterdir()) == []
    assert hub.bytes_served < 4_000_000
    containers.store = tmpfs("size=40m")
    assert containers.load(load_request(link)).code == ExitCode.DONE
