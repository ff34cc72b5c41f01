"""The backup of docs/operations.md restores models in a cluster that does not know them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from sd_api import names
from tests.support.kube.cluster import Cluster, model_manifest
from tests.support.operator.operated import Operated
from tests.support.paths import ROOT
from tools.kubectl import kubectl_path

pytestmark = pytest.mark.cluster

PAGE = (ROOT / "docs" / "operations.md").read_text()
Json = dict[str, Any]


def back_up(cluster: Cluster) -> str:
    """Return what the page's command prints for the test's namespace. Skip without jq."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not on PATH: apt install jq")
    (command,) = re.findall(r"^    (kubectl get sdm .*\| jq .*)$", PAGE, re.MULTILINE)
    given = f"--kubeconfig={cluster.kubeconfig}"
    command = command.replace("--all-namespaces", f"--namespace={cluster.namespace}")
    script = f'kubectl() {{ {kubectl_path()} {given} "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def models_of(backup: str) -> list[Json]:
    """Return the models of a backup."""
    return [json.loads(line) for line in backup.splitlines()]


def lose(operated: Operated, name: str) -> None:
    """Remove a model and its Jobs as if the cluster had lost them; the files stay."""
    operated.delete(name)
    operated.cluster.release(name)
    operated.gone(name)
    for job in operated.cluster.list("jobs"):
        operated.cluster.delete("job", job["metadata"]["name"])
        operated.cluster.wait_gone("job", job["metadata"]["name"])


# Slow, because test_loads.py also tests the adoption of retained files.
@pytest.mark.slow
def test_a_restored_model_adopts_its_files(operated: Operated) -> None:
    """The restored model has a new uid and no ownerReferences, and no byte is downloaded."""
    cluster = operated.cluster
    claim = cluster.get("pvc", "models")["metadata"]
    manifest = model_manifest("sketch", url=operated.link())
    manifest["metadata"] |= {
        "labels": {"team": "art"},
        "annotations": {names.ANNOTATION_RELOAD: "2"},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": claim["name"],
                "uid": claim["uid"],
            }
        ],
    }
    operated.start()
    cluster.apply(manifest)
    first = operated.ready()
    backup = back_up(cluster)
    (model,) = models_of(backup)
    assert model.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert model["metadata"].keys() == {"name", "namespace", "labels", "annotations"}
    assert model["spec"] == first["spec"]

    operated.kill()
    lose(operated, "sketch")
    operated.hub.forget()
    cluster.kubectl("apply", "-f", "-", stdin=backup)
    operated.start()
    second = operated.ready()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["metadata"]["labels"] == first["metadata"]["labels"]
    assert second["metadata"]["annotations"][names.ANNOTATION_RELOAD] == "2"
    assert "ownerReferences" not in second["metadata"]
    assert second["status"]["artifact"]["digest"] == first["status"]["artifact"]["digest"]
    assert operated.hub.bytes_served == 0


def test_a_model_that_is_being_deleted_is_not_in_the_backup(cluster: Cluster) -> None:
    """The backup leaves out a model that is being deleted: a restore would bring it back."""
    cluster.model("kept", url="org/kept")
    manifest = model_manifest("deleted", url="org/deleted")
    manifest["metadata"]["finalizers"] = ["example.com/waits"]
    cluster.apply(manifest)
    cluster.delete("sdm", "deleted")
    assert [item["metadata"]["name"] for item in models_of(back_up(cluster))] == ["kept"]
    cluster.release("deleted")
