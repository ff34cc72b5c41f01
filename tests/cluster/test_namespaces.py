"""A listed namespace that is deleted with the operator's Role, while another one is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_api import names
from tests.support.kube.cluster import Backend, Cluster, namespace_of
from tests.support.kube.kubeconfig import credentials
from tests.support.operator.operated import Operated
from tests.support.proxies.rbacproxy import RbacProxy

pytestmark = pytest.mark.cluster


@pytest.fixture
def proxy(backend: Backend, tmp_path: Path) -> Iterator[RbacProxy]:
    """A proxy that enforces the operator's Roles; not every API server of the tests does."""
    server, token, ca = credentials(backend.kubeconfig)
    with RbacProxy(server, token, ca, tmp_path / "proxy.kubeconfig") as made:
        yield made


@pytest.fixture
def other(backend: Backend, tmp_path: Path) -> Iterator[Cluster]:
    """The namespace that the test deletes."""
    with namespace_of(backend, tmp_path, stub=backend.local_pods) as made:
        yield made


@pytest.mark.slow
def test_a_namespace_is_deleted_with_the_rights_in_it(
    light_operated: Operated, other: Cluster, proxy: RbacProxy
) -> None:
    """The restarted operator releases the namespace's model, and loads in the other namespace."""
    operated = light_operated
    env = {
        "KUBECONFIG": str(proxy.kubeconfig),
        "SD_OPERATOR_NAMESPACES": f"{other.namespace},{operated.cluster.namespace}",
    }
    operated.start(**env)
    other.model("sketch", url=operated.light_link("sketch"))
    operated.eventually(lambda: names.FINALIZER in _finalizers(other.get("sdm", "sketch")))
    operated.kill()

    # A namespace controller deletes Roles and models in any order.
    proxy.without_role.add(other.namespace)
    other.delete("namespace", other.namespace)
    operated.start(**env)
    operated.load("next", url=operated.light_link("next"))
    other.wait_gone("namespace", other.namespace)
    log = operated.cluster.operator_log()
    assert f"namespace {other.namespace} is not served" in log
    assert "Traceback" not in log


def test_a_namespace_is_deleted_while_the_operator_runs(
    light_operated: Operated, other: Cluster, proxy: RbacProxy
) -> None:
    """The watches of that namespace end without a traceback, and the operator goes on."""
    operated = light_operated
    operated.start(
        KUBECONFIG=str(proxy.kubeconfig),
        SD_OPERATOR_NAMESPACES=f"{other.namespace},{operated.cluster.namespace}",
    )
    other.model("sketch", url=operated.light_link("sketch"))
    operated.eventually(lambda: names.FINALIZER in _finalizers(other.get("sdm", "sketch")))
    proxy.without_role.add(other.namespace)
    other.delete("namespace", other.namespace)
    other.wait_gone("namespace", other.namespace)
    operated.load("next", url=operated.light_link("next"))
    assert operated.operator is not None
    assert operated.operator.poll() is None
    assert "Traceback" not in operated.cluster.operator_log()


def _finalizers(item: dict[str, dict[str, list[str]]]) -> list[str]:
    return item["metadata"].get("finalizers", [])
