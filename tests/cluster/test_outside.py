"""`make test-cluster` on an existing cluster, which is here another standalone.

To a run it looks like a foreign cluster: it has a node, its kubeconfig names a CA file, and only
variables name the image of the Pods, their sources and their volumes.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sd_api.crd import custom_resource_definition
from sd_operator.standalone.podrun import NODE
from tests.support.kube.administrator import administrator
from tests.support.kube.backends import backend_of
from tests.support.kube.cluster import CLAIM, TEST_LABEL, Backend, Cluster
from tests.support.kube.rawapi import RawApi
from tests.support.paths import ROOT

# Slow, because these tests start a standalone and run the cluster tests on it.
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WORKER = "worker"
CRD = custom_resource_definition()
CRD_NAME = CRD["metadata"]["name"]
FEW = {
    "tests/cluster/test_rbac.py": ["test_a_missing_right_is_reported"],
    "tests/cluster/test_forged_jobs.py": ["test_a_forged_clean_up_does_not_release_a_model"],
}
"""Tests that need no load; one of them needs Pods that are processes on this machine."""
LOADS = {
    "tests/cluster/test_loads.py": [
        "test_a_model_is_loaded_served_and_removed",
        "test_a_load_costs_few_requests",
    ],
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose kubeconfig names a CA file."""
    work = tmp_path_factory.mktemp("outside")
    with backend_of({}) as started:
        config = yaml.safe_load(started.kubeconfig.read_text())
        entry = config["clusters"][0]["cluster"]
        (work / "ca.crt").write_bytes(base64.b64decode(entry.pop("certificate-authority-data")))
        entry["certificate-authority"] = "ca.crt"
        kubeconfig = work / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        backend = Backend(started.name, kubeconfig, kubeconfig, started.store)
        yield Cluster(backend, "default", work)


@pytest.fixture
def env(outside: Cluster) -> dict[str, str]:
    """The variables of a run on a cluster with a node."""
    outside.kubectl_apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": WORKER}})
    assert outside.backend.store is not None
    return {
        "KUBECONFIG": str(outside.kubeconfig),
        "SD_TEST_LOADER_IMAGE": "registry.example.com/loader:1",
        # Another name of the default address: only sources that read the variable have it.
        "SD_TEST_SOURCE_HOST": "localhost",
        # A provisioner puts a generated id into the folder's name.
        "SD_TEST_STORE": outside.backend.store.replace(CLAIM, "mod*"),
    }


@pytest.fixture
def without_crd(outside: Cluster) -> Iterator[None]:
    """Delete the CRD before the test, and apply it again afterwards."""
    outside.kubectl("delete", "crd", CRD_NAME)
    yield
    outside.kubectl_apply(CRD)


def run_tests(
    env: dict[str, str], chosen: dict[str, list[str]]
) -> subprocess.CompletedProcess[str]:
    """Run tests as `make test-cluster` does."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    tests = [f"{path}::{name}" for path, found in chosen.items() for name in found]
    command = [sys.executable, "-m", "pytest", "-m", "cluster", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | env, capture_output=True, text=True, timeout=250
    )


@pytest.mark.parametrize("loads", [pytest.param({}, id="no load"), pytest.param(LOADS, id="loads")])
@pytest.mark.usefixtures("without_crd")
def test_tests_run_on_the_nodes_and_nothing_is_left(
    outside: Cluster, env: dict[str, str], loads: dict[str, list[str]]
) -> None:
    """A table shows what ran. Tests that need Pods to be processes on this machine are skipped."""
    done = run_tests(env, loads | FEW)

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    table = done.stdout.partition(" cluster tests ")[2]
    rows = dict(re.findall(r"^(\S+)((?: +[0-9]+){4})$", table, re.MULTILINE))
    assert {path: [int(count) for count in row.split()] for path, row in rows.items()} == {
        **{path: [len(found), 0, 0, 0] for path, found in loads.items()},
        "tests/cluster/test_rbac.py": [1, 0, 0, 0],
        "tests/cluster/test_forged_jobs.py": [0, 0, 0, 1],
        "all": [1 + sum(map(len, loads.values())), 0, 0, 1],
    }
    assert "1 skipped: the nodes of KUBECONFIG's cluster cannot run a stand-in" in table
    assert outside.list("namespaces", labelSelector=TEST_LABEL) == []
    assert not outside.exists("crd", CRD_NAME)


def test_a_crd_that_the_cluster_already_has_stays(outside: Cluster, env: dict[str, str]) -> None:
    """After a run, a CRD that existed before the run is still there, with its models."""
    before = outside.model("mine", url="org/name")
    with backend_of(env) as backend:
        assert backend.source_host == env["SD_TEST_SOURCE_HOST"]
    assert outside.get("sdm", "mine") == before
    outside.kubectl("delete", "sdm", "mine")


@pytest.mark.usefixtures("without_crd")
def test_another_version_of_the_crd_ends_the_run(outside: Cluster, env: dict[str, str]) -> None:
    """The run ends with an error and does not replace the CRD, which others may use."""
    older = custom_resource_definition()
    (version,) = older["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["priority"]
    outside.kubectl_apply(older)
    with pytest.raises(pytest.exit.Exception, match="another version of the CRD"), backend_of(env):
        pass
    (served,) = outside.get("crd", CRD_NAME)["spec"]["versions"]
    assert served["schema"] == version["schema"]


def test_a_user_without_a_token_gets_one_for_the_run(backend: Backend, tmp_path: Path) -> None:
    """A user with a plugin in the kubeconfig gets a token of a ServiceAccount for the run."""
    if backend.name == "standalone":
        pytest.skip("standalone has no ServiceAccounts: KUBEBUILDER_ASSETS or KUBECONFIG")
    config = yaml.safe_load(backend.kubeconfig.read_text())
    version = "client.authentication.k8s.io/v1"
    user = config["users"][0]["user"]
    credential = {"apiVersion": version, "kind": "ExecCredential", "status": dict(user)}
    user.clear()
    user["exec"] = {
        "apiVersion": version,
        "command": "echo",
        "args": [json.dumps(credential)],
        "interactiveMode": "Never",
    }
    path = tmp_path / "plugin.kubeconfig"
    path.write_text(yaml.safe_dump(config))

    with administrator(str(path), tmp_path) as own:
        answer = RawApi(own).ask("GET", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")
        bindings = [item["metadata"] for item in answer.body["items"]]
        (name,) = [item["name"] for item in bindings if TEST_LABEL in item.get("labels", {})]
    cluster = Cluster(backend, "default", tmp_path)
    assert not cluster.exists("clusterrolebinding", name)
    assert not cluster.exists("namespace", name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"SD_TEST_LOADER_IMAGE": ""}, "set SD_TEST_LOADER_IMAGE", id="no image"),
        pytest.param(
            {"SD_TEST_LOADER_IMAGE": "", "SD_TEST_SOURCE_HOST": ""},
            "set SD_TEST_LOADER_IMAGE and SD_TEST_SOURCE_HOST",
            id="KUBECONFIG alone",
        ),
        pytest.param(
            {"SD_TEST_SOURCE_HOST": "192.0.2.1"},
            "this machine cannot listen on 192.0.2.1",
            id="address of another machine",
        ),
    ],
)
def test_a_run_that_cannot_load_ends_at_once(
    env: dict[str, str], changed: dict[str, str], message: str
) -> None:
    """Without what loads need, the run fails at once: skipped loads would look like a success."""
    with pytest.raises(pytest.exit.Exception, match=message), backend_of(env | changed):
        pass


def test_a_cluster_without_nodes_gets_one_for_the_run(outside: Cluster) -> None:
    """Its Node is deleted at the end."""
    outside.run("delete", "node", WORKER, NODE)
    with backend_of({"KUBECONFIG": str(outside.kubeconfig)}) as backend:
        assert backend.local_pods
        assert outside.exists("node", NODE)
    assert not outside.exists("node", NODE)
