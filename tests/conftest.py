"""Fixtures that several folders of tests share: the cluster, a running operator, and counts."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from devkit.tiny import write_checkpoint
from tests.support import tally as tallies
from tests.support.kube.backends import backend_of
from tests.support.kube.cluster import Backend, Cluster, namespace_of
from tests.support.kube.outcomes import print_table
from tests.support.operator.operated import Operated, operated_in
from tests.support.tally import Tally

# Tests that set no number of examples try few, and in `make test-all` many.
# There is no deadline: a machine with few cores misses hypothesis' 0.2 s now and then.
settings.register_profile("few", max_examples=40, deadline=None)
settings.register_profile("many", max_examples=500, deadline=None)
settings.load_profile("few")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude imported modules and collected tests from garbage collection.

    Torch and thousands of tests have millions of objects that live until the end of the run. A
    garbage collection that visits them takes up to a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Alternate between files that wait for an API server and files that compute.

    A file that waits uses little processor time, but takes too long to be the last one.
    """
    waiting = dict.fromkeys(item.path for item in items if item.get_closest_marker("cluster"))
    computing = dict.fromkeys(item.path for item in items if item.path not in waiting)
    order = {path: place for group in (waiting, computing) for place, path in enumerate(group)}
    items.sort(key=lambda item: order[item.path])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sums of the counts that tests report with `tally`.

    On an API server other than standalone, also print the outcomes of the cluster tests.
    """
    tallies.print_sums(terminalreporter)
    if os.environ.get("KUBEBUILDER_ASSETS") or os.environ.get("KUBECONFIG"):
        print_table(terminalreporter)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Return a function that reports a count under a name; the run prints the sums."""
    return tallies.tally(record_property)


@pytest.fixture(scope="session")
def backend() -> Iterator[Backend]:
    """The API server of this run; with pytest-xdist each worker has its own."""
    with backend_of(os.environ) as found:
        yield found


@pytest.fixture
def cluster(backend: Backend, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace with a PVC, for one test."""
    with namespace_of(backend, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_cluster(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace that the tests of a module share; their objects have different names."""
    with namespace_of(backend, tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def stub_cluster(backend: Backend, tmp_path: Path) -> Iterator[Cluster]:
    """As `cluster`, with stubloader.py in place of the loader."""
    with namespace_of(backend, tmp_path, stub=True) as made:
        yield made


@pytest.fixture(scope="module")
def shared_stub_cluster(
    backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """As `shared_cluster`, with stubloader.py in place of the loader."""
    with namespace_of(backend, tmp_path_factory.mktemp("cluster"), stub=True) as made:
        yield made


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny checkpoints that differ."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = [folder / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(made):
        write_checkpoint(path, seed=seed)
    return made


@pytest.fixture
def operated(cluster: Cluster, checkpoints: list[Path], tmp_path: Path) -> Iterator[Operated]:
    """An operator that the test starts itself, before or after it creates models."""
    with operated_in(cluster, checkpoints, tmp_path) as made:
        yield made


@pytest.fixture
def light_operated(backend: Backend, checkpoints: list[Path], tmp_path: Path) -> Iterator[Operated]:
    """As `operated`, with stubloader.py in place of the loader unless the cluster has nodes."""
    with (
        namespace_of(backend, tmp_path, stub=backend.local_pods) as cluster,
        operated_in(cluster, checkpoints, tmp_path) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def shared_operated(
    shared_cluster: Cluster, checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operated]:
    """A running operator that the tests of a module share: their models have different names."""
    with operated_in(shared_cluster, checkpoints, tmp_path_factory.mktemp("operated")) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def shared_light_operated(
    backend: Backend, checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operated]:
    """As `shared_operated`, with stubloader.py for the loader unless the cluster has nodes."""
    work = tmp_path_factory.mktemp("operated")
    with (
        namespace_of(backend, work, stub=backend.local_pods) as cluster,
        operated_in(cluster, checkpoints, work) as made,
    ):
        made.start()
        yield made
