"""The gateway fixture, which the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import Gateway, write_keys
from tests.support.kube.cluster import CLAIM, Cluster


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
