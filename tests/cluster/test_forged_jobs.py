"""Jobs and Pods that somebody else made with the operator's labels, owners and names."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sd_api import names
from sd_operator.resources.model import Model
from tests.support.kube.cluster import Cluster
from tests.support.kube.rawapi import RawApi
from tests.support.operator.operated import condition

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
FORGED_DIGEST = "blake3:" + "6" * 64
LOOK_SECONDS = 1.5
"""How long a test waits before it checks that a forged Job has no effect."""


class Forger:
    """Somebody with all rights on Jobs and Pods of the namespace, and none on models."""

    def __init__(self, cluster: Cluster, victim: Json) -> None:
        self._api = RawApi(cluster.kubeconfig)
        self._jobs = f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs"
        self._pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
        self._victim = victim

    def job(self, name: str, *, owned: bool = False, role: str = names.ROLE_LOAD) -> str:
        """Create a Job with the labels of the victim's Jobs, and return its uid."""
        metadata = self._metadata(name, role)
        if owned:
            metadata["ownerReferences"] = [_owner(self._victim)]
        template = {"metadata": {"labels": metadata["labels"]}, "spec": _pod_spec()}
        spec = {"suspend": True, "template": template}
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
        return str(self._ask("POST", self._jobs, body)["metadata"]["uid"])

    def succeed(self, job: str) -> None:
        """Let a Job and a Pod of it report a load of the forged digest."""
        job_body = self._ask("GET", f"{self._jobs}/{job}")
        pod = f"{job}-pod"
        metadata = self._metadata(pod)
        # A node that does not exist: nothing runs the Pod.
        spec = _pod_spec() | {"nodeName": "elsewhere"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self._ask("POST", self._pods, body)
        artifact = {"digest": FORGED_DIGEST, "sizeBytes": 1, "files": 1}
        ended = {"exitCode": 0, "message": json.dumps({"outcome": "loaded", "artifact": artifact})}
        container = {"name": "convert", "image": "x", "imageID": "", "ready": False}
        status = container | {"restartCount": 0, "state": {"terminated": ended}}
        self._status(f"{self._pods}/{pod}", phase="Succeeded", containerStatuses=[status])
        # The owner is set only now: the Job controller deletes running Pods of a suspended Job.
        owned = {"metadata": {"ownerReferences": [_owner(job_body)]}}
        assert self._api.patch(f"{self._pods}/{pod}", owned).code == 200
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # As Kubernetes 1.31 and newer require, the Job first meets its criteria.
        ended = [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("SuccessCriteriaMet", "Complete")
        ]
        times = {"startTime": now, "completionTime": now}
        self._status(f"{self._jobs}/{job}", conditions=ended, succeeded=1, **times)

    def _metadata(self, name: str, role: str = names.ROLE_LOAD) -> Json:
        return {
            "name": name,
            "labels": {
                names.LABEL_NAME: names.LOADER_NAME,
                names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
                names.LABEL_MODEL_UID: self._victim["metadata"]["uid"],
                names.LABEL_ROLE: role,
            },
            "annotations": {
                names.ANNOTATION_LOAD_HASH: Model.from_body(self._victim).wanted,
                names.ANNOTATION_ATTEMPT: "0",
            },
        }

    def _status(self, path: str, **status: object) -> None:
        answer = self._api.patch(f"{path}/status", {"status": status})
        assert answer.code == 200, answer.text

    def _ask(self, method: str, path: str, body: object = None) -> Json:
        answer = self._api.ask(method, path, body)
        assert answer.code < 300, answer.text
        return answer.body


def _owner(item: Json) -> Json:
    kind = {key: item[key] for key in ("apiVersion", "kind")}
    identity = {key: item["metadata"][key] for key in ("name", "uid")}
    return kind | identity | {"controller": True}


def _pod_spec() -> Json:
    container = {"name": "convert", "image": "x", "command": ["x"]}
    return {"restartPolicy": "Never", "containers": [container]}


def model(cluster: Cluster, name: str, seconds: float = 0.0, **spec: object) -> Json:
    """Create a model whose load takes some seconds."""
    return cluster.model(name, url=f"https://models.example.com/{name}?seconds={seconds}", **spec)


def ready(cluster: Cluster, name: str) -> Json:
    """Wait until a model is Ready."""
    return cluster.wait_for(
        "sdm", name, lambda item: condition(item, "Ready").get("status") == "True"
    )


@pytest.fixture(scope="module")
def one_at_a_time(shared_stub_cluster: Cluster) -> Cluster:
    """A namespace with an operator that runs one load at a time; each test uses other names."""
    shared_stub_cluster.start_operator(SD_OPERATOR_MAX_LOADS="1", SD_OPERATOR_RESYNC_SECONDS="1")
    return shared_stub_cluster


OWNED = pytest.mark.parametrize(
    "owned",
    [
        pytest.param("labels", id="labels only", marks=pytest.mark.slow),
        pytest.param("owner", id="labels and owner"),
    ],
)


@OWNED
def test_forged_jobs_do_not_make_a_queued_model_ready(one_at_a_time: Cluster, owned: str) -> None:
    """The model loads once it is admitted; the forged Job stays as it is."""
    cluster, name, forged = one_at_a_time, f"queued-{owned}", f"forged-{owned}"
    first = f"first-{owned}"
    model(cluster, first, seconds=60)
    cluster.wait_for("sdm", first, lambda item: "job" in item.get("status", {}))
    model(cluster, name)
    victim = cluster.wait_for(
        "sdm", name, lambda item: item.get("status", {}).get("phase") == "Queued"
    )
    forger = Forger(cluster, victim)
    uid = forger.job(forged, owned=owned == "owner")
    forger.succeed(forged)
    time.sleep(LOOK_SECONDS)
    assert cluster.get("sdm", name)["status"]["phase"] == "Queued"
    cluster.patch("sdm", first, {"spec": {"suspend": True}})
    status = ready(cluster, name)["status"]
    assert status["artifact"]["digest"] == "blake3:" + "ab" * 32
    assert status["job"]["name"] != forged
    assert cluster.get("job", forged)["metadata"]["uid"] == uid


@OWNED
def test_forged_jobs_do_not_delay_a_model(one_at_a_time: Cluster, owned: str) -> None:
    """The Jobs neither count as loads nor stand in for the model's own Job."""
    cluster, name, forged = one_at_a_time, f"held-{owned}", f"idle-{owned}"
    victim = model(cluster, name, suspend=True)
    uid = Forger(cluster, victim).job(forged, owned=owned == "owner")
    other = f"other-{owned}"
    model(cluster, other)
    ready(cluster, other)
    model(cluster, name, suspend=False)
    assert ready(cluster, name)["status"]["job"]["attempt"] == 0
    assert cluster.get("job", forged)["metadata"]["uid"] == uid


@OWNED
def test_a_foreign_job_with_our_name_is_replaced(one_at_a_time: Cluster, owned: str) -> None:
    """The model becomes Ready by a Job of its own under the name that the foreign Job had."""
    cluster, victim = one_at_a_time, f"replaced-{owned}"
    item = model(cluster, victim, suspend=True)
    uid, wanted = item["metadata"]["uid"], Model.from_body(item).wanted
    name = names.job_name(victim, uid, wanted, 0)
    foreign = Forger(cluster, item).job(name, owned=owned == "owner")
    model(cluster, victim, suspend=False)
    status = ready(cluster, victim)["status"]
    assert (status["job"]["name"], status["artifact"]["digest"]) == (name, "blake3:" + "ab" * 32)
    own = cluster.get("job", name)["metadata"]["uid"]
    assert own == status["job"]["uid"] != foreign


@pytest.mark.slow
def test_a_forged_clean_up_does_not_release_a_model(one_at_a_time: Cluster) -> None:
    """The files are removed by the operator's own Job."""
    cluster = one_at_a_time
    model(cluster, "victim")
    victim = ready(cluster, "victim")
    forger = Forger(cluster, victim)
    name = names.job_name("victim", victim["metadata"]["uid"], names.ROLE_REMOVE, 0)
    forger.job(name, role=names.ROLE_REMOVE)
    forger.succeed(name)
    cluster.delete("sdm", "victim")
    cluster.wait_gone("sdm", "victim")
    assert not (cluster.store / "victim").is_symlink()
