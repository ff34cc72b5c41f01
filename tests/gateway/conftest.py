"""The gateway that the tests of a module share, and fake sources for its look-ups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_operator.gateway import lookups
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.gateway.lookupsources import Sources, serving
from tests.support.kube.cluster import CLAIM, Cluster


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let look-ups wait for 60 s, since on a busy machine a server on loopback may be slow."""
    monkeypatch.setattr(lookups, "LOOKUP_SECONDS", 60.0)


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Sources]:
    """Fake servers of Civitai, of the Hub and of links, for look-ups."""
    with serving(tmp_path) as sources:
        yield sources


@pytest.fixture(scope="module")
def gateway(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one key, for the module's namespace, without limits."""
    keys_file = tmp_path_factory.mktemp("gateway") / "keys"
    (key,) = write_keys(keys_file, shared_cluster.namespace)
    settings = GatewaySettings(
        keys_file, shared_cluster.kubeconfig, CLAIM, calls_per_minute=0, failures_per_minute=0
    )
    with Gateway(settings, key) as made:
        yield made
