"""Tests of the findings of `kubectl sdm doctor`, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from typing_extensions import override

from sd_api import names
from sd_api.crd import custom_resource_definition
from sd_operator.cli.doctor import egress, examine, installation, namespace
from sd_operator.cli.doctor.findings import RIGHTS, ClusterView, Level, NamespaceView
from sd_operator.cli.doctor.gather import view_cluster
from sd_operator.cli.kubectl import AccessDeniedError, Kubectl, ObjectNotFoundError
from sd_operator.resources.warning_event import WarningEvent
from tests.support.kube.rights import RULES
from tests.support.rules.bodies import condition, resource
from tests.support.rules.observed import NOW, body


def crd(**changes: Any) -> Any:
    """Return this version's CRD with changes to its only version entry."""
    definition = custom_resource_definition()
    definition["spec"]["versions"][0].update(changes)
    return definition


def older_crd() -> Any:
    """Return a CRD that lacks spec.priority."""
    definition = crd()
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["priority"]
    return definition


def newer_crd() -> Any:
    """Return a CRD with a field that this version does not have."""
    definition = crd()
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["speed"] = {"type": "string"}
    return definition


@pytest.mark.parametrize(
    ("definition", "level", "message"),
    [
        pytest.param(crd(), Level.OK, "sd-operator.dev/v1alpha1", id="this version"),
        pytest.param({}, Level.FAILED, "is not installed", id="not installed"),
        pytest.param(None, Level.UNKNOWN, "cannot read", id="not readable"),
        pytest.param(
            crd(served=False), Level.FAILED, "does not serve version v1alpha1", id="not served"
        ),
        pytest.param(older_crd(), Level.FAILED, "the CRD lacks spec.priority", id="older"),
        pytest.param(newer_crd(), Level.WARNING, "does not know", id="newer"),
    ],
)
def test_check_of_the_crd(definition: Any, level: Level, message: str) -> None:
    """The check passes if the CRD is served and has exactly the fields of this version."""
    finding = installation.check_crd(definition)
    assert finding.level is level
    assert message in finding.message


def pod(ready: str = "True") -> dict[str, Any]:
    """Return a Pod of the operator whose GPU resource is amd.com/gpu."""
    env = [{"name": "SD_OPERATOR_GPU_RESOURCE", "value": "amd.com/gpu"}, {"name": "POD"}]
    return {
        "metadata": {"name": "operator", "namespace": "system"},
        "spec": {"serviceAccountName": "operator", "containers": [{"env": env}]},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.mark.parametrize(
    ("pods", "level"),
    [
        pytest.param([pod(), pod()], Level.OK, id="both ready"),
        pytest.param([pod(), pod("False")], Level.WARNING, id="one ready"),
        pytest.param([pod("False")], Level.FAILED, id="not ready"),
        pytest.param([], Level.WARNING, id="no Pod"),
        pytest.param(None, Level.UNKNOWN, id="not readable"),
    ],
)
def test_check_of_the_operator_counts_ready_pods(pods: Any, level: Level) -> None:
    """A missing operator is only a warning: it may run outside the cluster."""
    assert installation.check_operators(pods).level is level


def node(gpus: str | None) -> dict[str, Any]:
    """Return a node with this number of amd.com/gpu, or without that resource."""
    return {"status": {"allocatable": {"cpu": "2"} | ({"amd.com/gpu": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "level", "message"),
    [
        pytest.param([node("4"), node(None)], Level.OK, "4 amd.com/gpu on 1 of 2 nodes", id="one"),
        pytest.param([node(None)], Level.WARNING, "no node has amd.com/gpu", id="no GPU"),
        pytest.param([node("0")], Level.WARNING, "no node has amd.com/gpu", id="broken GPU"),
    ],
)
def test_check_of_gpus_counts_the_operators_resource(
    nodes: Any, level: Level, message: str
) -> None:
    """The name of the GPU resource comes from the environment of the operator's Pod."""
    finding = installation.check_gpus(nodes, installation.gpu_resource([pod()]))
    assert (finding.level, message in finding.message) == (level, True)


def claim(phase: str = "Bound", mode: str = "ReadWriteMany", **spec: Any) -> dict[str, Any]:
    """Return a PVC."""
    metadata = {"name": "models", "namespace": "art", "uid": "c"}
    spec = {"accessModes": [mode]} | spec
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("pvc", "level"),
    [
        pytest.param(claim(), Level.OK, id="bound and shared"),
        pytest.param(claim(mode="ReadWriteOnce"), Level.WARNING, id="one node only"),
        pytest.param(claim("Pending"), Level.WARNING, id="pending"),
        pytest.param(claim("Lost"), Level.FAILED, id="lost"),
        pytest.param(None, Level.FAILED, id="missing"),
    ],
)
def test_check_of_pvcs(pvc: Any, level: Level) -> None:
    """The check passes if the PVC is bound and ReadWriteMany."""
    (finding,) = namespace.check_claims(NamespaceView("art", [], claims={"models": pvc}))
    assert finding.level is level


NO_CLASS = WarningEvent("ProvisioningFailed", 'storageclass.storage.k8s.io "nfs" not found', NOW)


@pytest.mark.parametrize(
    ("pvc", "warnings", "level", "message"),
    [
        pytest.param(
            claim("Pending", storageClassName="nfs"),
            {"models": NO_CLASS},
            Level.FAILED,
            "PersistentVolumeClaim models is not bound: StorageClass nfs does not exist",
            id="no such class",
        ),
        pytest.param(
            claim("Pending", storageClassName="nfs"),
            {},
            Level.WARNING,
            "PersistentVolumeClaim models is not bound: StorageClass nfs has not provided a volume"
            " yet",
            id="perhaps it waits for a Pod",
        ),
        pytest.param(
            claim("Lost", volumeName="pv-7"),
            {},
            Level.FAILED,
            "PersistentVolumeClaim models has lost its PersistentVolume pv-7",
            id="lost",
        ),
    ],
)
def test_a_pvc_without_a_volume_is_explained(
    pvc: Any, warnings: Any, level: Level, message: str
) -> None:
    """The finding says why the PVC has no volume, in the words of the models' conditions."""
    view = NamespaceView("art", [], claims={"models": pvc}, warnings=warnings)
    (finding,) = namespace.check_claims(view)
    assert (finding.level, finding.message) == (level, message)
    assert finding.remedy


class ListedNamespaces(Kubectl):
    """A cluster whose operator is set to serve five namespaces, which have no models."""

    @override
    def get(self, kind: str, name: str, namespace: str | None = None) -> Any:
        if name == "gone":
            raise ObjectNotFoundError("not found")
        if name == "hidden" or kind == "customresourcedefinition":
            raise AccessDeniedError("forbidden")
        if kind == "persistentvolumeclaim":
            return claim("Pending" if namespace == "unbound" else "Bound", storageClassName="nfs")
        ending = {"deletionTimestamp": "2026-01-02T03:04:00Z"} if name == "ending" else {}
        return {"metadata": {"name": name} | ending}

    @override
    def list(self, kind: str, namespace: str | None = None, **options: Any) -> Any:
        if kind == "events":
            assert options["fields"] == "involvedObject.uid=c,type=Warning"
            about = {"involvedObject": {"kind": "PersistentVolumeClaim"}}
            event = about | {"reason": "ProvisioningFailed", "message": NO_CLASS.message}
            return [event, about | {"reason": "StoreMissing", "message": "not about the binding"}]
        if kind != "pods":
            return []
        listed = {"name": "SD_OPERATOR_NAMESPACES", "value": "art, ending,gone,hidden,unbound,"}
        operator = pod()
        operator["spec"]["containers"][0]["env"].append(listed)
        return [operator]

    @override
    def may(self, verb: str, resource: str, namespace: str, account: str | None = None) -> bool:
        return namespace != "ending"


def test_a_listed_namespace_that_is_gone_or_without_rights_is_a_finding() -> None:
    """Such a namespace is a finding even without models; if it is gone, nothing else is checked."""
    cluster = view_cluster(ListedNamespaces(), [])
    findings = [finding for finding in examine(cluster) if finding.level is not Level.OK]
    assert [(finding.level, finding.subject) for finding in findings] == [
        (Level.UNKNOWN, "CRD"),
        (Level.WARNING, "GPU"),
        (Level.WARNING, "namespace ending"),
        (Level.FAILED, "namespace gone"),
        (Level.UNKNOWN, "namespace hidden"),
        (Level.FAILED, "ending: RBAC"),
        (Level.FAILED, "unbound: PVC models"),
    ]
    assert "restore its Role" in findings[5].remedy
    assert findings[6].message.endswith("StorageClass nfs does not exist")


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        pytest.param({"token", "host"}, Level.OK, id="has the key"),
        pytest.param({"host"}, Level.FAILED, id="lacks the key"),
        pytest.param(None, Level.FAILED, id="missing"),
    ],
)
def test_check_of_secrets(keys: set[str] | None, level: Level) -> None:
    """The check passes if the Secret that a model names has the key that the model uses."""
    model = body(credentialsSecretRef={"name": "hub"})
    (finding,) = namespace.check_keys(NamespaceView("art", [model], keys={("Secret", "hub"): keys}))
    assert (finding.level, finding.subject) == (level, "art: Secret hub")


def policy(*egress: Any, labels: Any = None, **spec: Any) -> dict[str, Any]:
    """Return a NetworkPolicy with these egress rules for the Pods with these labels."""
    defaults = {"podSelector": {"matchLabels": labels or {}}, "policyTypes": ["Egress"]}
    return {"metadata": {"name": "loader"}, "spec": {**defaults, **spec, "egress": list(egress)}}


DNS = {"ports": [{"port": 53, "protocol": "UDP"}]}
HTTPS = {"ports": [{"port": 443}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}


@pytest.mark.parametrize(
    ("policies", "level", "message"),
    [
        pytest.param([], Level.OK, "no NetworkPolicy", id="no policy"),
        pytest.param([policy(DNS, HTTPS)], Level.OK, "has egress for DNS", id="both"),
        pytest.param([policy(DNS), policy(HTTPS)], Level.OK, "has egress for DNS", id="by two"),
        pytest.param([policy({"to": []})], Level.OK, "has egress for DNS", id="all ports"),
        pytest.param([policy(DNS)], Level.FAILED, "no egress for https (443):", id="DNS only"),
        pytest.param([policy(HTTPS)], Level.FAILED, "no egress for DNS (53):", id="https only"),
        pytest.param(
            [policy()], Level.FAILED, "no egress for DNS (53) and https (443):", id="neither"
        ),
        pytest.param(
            [policy({"ports": [{"port": 1, "endPort": 65535}]})],
            Level.OK,
            "has egress",
            id="port range",
        ),
        pytest.param(
            [policy(labels={"app": "web"})], Level.OK, "no NetworkPolicy", id="for other Pods"
        ),
        pytest.param(
            [policy(policyTypes=["Ingress"])], Level.OK, "no NetworkPolicy", id="ingress only"
        ),
        pytest.param(
            [
                policy(
                    podSelector={
                        "matchExpressions": [
                            {"key": names.LABEL_NAME, "operator": "In", "values": ["sd-loader"]}
                        ]
                    }
                )
            ],
            Level.FAILED,
            "no egress for DNS",
            id="selected by expression",
        ),
    ],
)
def test_check_of_egress(policies: Any, level: Level, message: str) -> None:
    """The check passes if the loader's NetworkPolicies together allow DNS and https."""
    finding = egress.check_egress(NamespaceView("art", [], policies=policies))
    assert (finding.level, message in finding.message) == (level, True)


def test_unreadable_objects_are_not_failures() -> None:
    """Every check that cannot read its objects yields a finding of level UNKNOWN."""
    cluster = ClusterView(None, None, None, [NamespaceView("art", [])])
    levels = [finding.level for finding in examine(cluster)]
    assert set(levels) == {Level.UNKNOWN}
    assert len(levels) == 7


def test_check_of_rights_lists_the_missing_ones() -> None:
    """The message lists every permission that the operator lacks."""
    denied = ["create jobs.batch", "watch pods"]
    finding = namespace.check_rights(NamespaceView("art", [], denied=denied))
    assert finding.level is Level.FAILED
    assert "create jobs.batch, watch pods" in finding.message


@pytest.mark.parametrize("right", [" ".join(right) for right in RIGHTS])
def test_rights_that_doctor_checks_are_in_the_operators_role(right: str) -> None:
    """The Role of the chart grants every permission that doctor checks."""
    verb, resource = right.split()
    kind, _, sub = resource.partition("/")
    plural, _, group = kind.partition(".")
    wanted = f"{plural}/{sub}" if sub else plural
    assert any(
        verb in rule["verbs"] and wanted in rule["resources"] and group in rule["apiGroups"]
        for rule in RULES
    )


@pytest.mark.parametrize(
    ("reason", "level"),
    [("VolumeNotMounted", Level.FAILED), ("NotAModel", Level.WARNING)],
)
def test_each_stalled_model_is_a_finding(reason: str, level: Level) -> None:
    """The finding is a failure if storage, network or nodes are the cause, otherwise a warning."""
    stalled = resource(condition("Ready"), condition("Stalled", reason=reason, message="why"))
    (finding,) = namespace.check_models(NamespaceView("art", [stalled, resource()]))
    assert (finding.level, finding.message) == (level, f"{reason}: why")
