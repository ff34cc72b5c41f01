"""Loads on a full or read-only volume, and the space that a load needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from devkit.fakehub import FakeHub
from devkit.tiny import write_checkpoint
from sd_api.reasons import ExitCode, Reason
from tests.support.loader.loadercli import OTHER, Containers, failed, load_request


def test_read_only_volume_is_named(
    containers: Containers, hub: FakeHub, tmpfs: Callable[..., Path]
) -> None:
    """The load fails before it downloads anything."""
    containers.store = tmpfs("ro")
    ended = containers.load(load_request(hub.serve_file("/model.safetensors", OTHER)))
    failed(ended, Reason.VOLUME_NOT_WRITABLE, "Read-only")
    assert hub.requests == []


@pytest.mark.parametrize(
    "size",
    [
        pytest.param("20m", id="for the download", marks=pytest.mark.slow),
        pytest.param("50m", id="for the conversion"),
    ],
)
def test_full_volume_is_named_and_freed(
    containers: Containers,
    hub: FakeHub,
    tmpfs: Callable[..., Path],
    tmp_path: Path,
    size: str,
) -> None:
    """A load that does not fit removes everything it wrote."""
    containers.store = tmpfs(f"size={size}")
    write_checkpoint(tmp_path / "tiny.safetensors")  # 34 MB
    link = hub.serve_file("/model.safetensors", tmp_path / "tiny.safetensors", ignore_range=True)
    failed(containers.load(load_request(link)), Reason.INSUFFICIENT_STORAGE, "")
    assert list(containers.store.iterdir()) == []


def test_streamed_load_needs_only_the_space_of_its_output(
    containers: Containers, hub: FakeHub, tmpfs: Callable[..., Path], tmp_path: Path
) -> None:
    """A 40 MB volume holds a 34 MB model.

    A 20 MB volume is refused before the weights are downloaded.
    """
    write_checkpoint(tmp_path / "tiny.safetensors")
    link = hub.serve_file("/model.safetensors", tmp_path / "tiny.safetensors")
    containers.store = tmpfs("size=20m")
    failed(containers.load(load_request(link)), Reason.INSUFFICIENT_STORAGE, "needs")
    assert list(containers.store.iterdir()) == []
    assert hub.bytes_served < 4_000_000
    containers.store = tmpfs("size=40m")
    assert containers.load(load_request(link)).code == ExitCode.DONE
