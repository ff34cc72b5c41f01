"""What `kubectl sdm` makes of what it sees: tables, panels and findings, without a cluster."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from sd_api import names
from sd_api.crd import custom_resource_definition
from sd_api.reasons import Reason
from sd_operator.base import times
from sd_operator.cli import doctor, views
from sd_operator.cli.__main__ import options_first
from sd_operator.cli.doctor import ClusterView, Level, SpaceView
from tests.support.kube.rights import RULES
from tests.support.rules.observed import CLAIM_UID, NOW, WANTED, body

PROGRESS = {"stage": "Downloading", "percent": 42, "text": "42% of 2.1 GB, 120 MB/s, 10 s left"}
ARTIFACT = {
    "path": "sketch",
    "immutablePath": f".store/uid/{WANTED}",
    "claimName": "models",
    "claimUID": CLAIM_UID,
    "digest": "0" * 64,
    "sizeBytes": 2_100_000_000,
    "size": "2.1 GB",
    "sharedBytes": 500_000_000,
    "files": 12,
    "baseModel": "sd1",
    "lastUpdateTime": times.stamp(NOW),
}


def condition(kind: str, status: str = "True", reason: str = "Loaded", message: str = "") -> Any:
    """A condition of a status."""
    moment = times.stamp(NOW)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
    }


def resource(*conditions: Any, seen: int = 1, **status: Any) -> dict[str, Any]:
    """A model with this status, made three minutes ago."""
    found = body({"observedGeneration": seen, "conditions": list(conditions), **status})
    found["metadata"]["creationTimestamp"] = times.stamp(NOW - timedelta(minutes=3))
    return found


def printed(shown: RenderableType) -> str:
    """What a terminal without colours shows."""
    console = Console(file=io.StringIO(), width=160)
    console.print(shown)
    return console.file.getvalue()


READY = resource(condition("Ready"), phase="Ready", modelType="custom_ckpt", artifact=ARTIFACT)
STALLED = resource(
    condition("Ready", "False", "SourceNotFound"),
    condition("Stalled", "True", "SourceNotFound", "HTTP 404"),
    phase="Failed",
    reason="SourceNotFound",
)


def test_the_list_says_where_each_model_stands() -> None:
    """Progress while it loads, the reason where it is stuck, the size when it is there."""
    loading = resource(phase="Downloading", progress=PROGRESS)
    lines = printed(views.model_table([READY, loading, STALLED], NOW)).splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "TYPE", "PHASE", "PROGRESS", "BASE", "SIZE", "AGE"],
        ["sketch", "custom_ckpt", "Ready", "sd1", "2.1", "GB", "3", "min"],
        ["sketch", "Downloading", *str(PROGRESS["text"]).split(), "3", "min"],
        ["sketch", "Failed", "SourceNotFound", "3", "min"],
    ]


def test_the_list_of_all_namespaces_names_them() -> None:
    """First."""
    lines = printed(views.model_table([READY], NOW, everywhere=True)).splitlines()
    assert lines[0].startswith("NAMESPACE")
    assert lines[1].split()[:2] == ["art", "sketch"]


def test_the_panel_says_what_was_published() -> None:
    """And where."""
    text = printed(views.model_panel(READY, [], NOW))
    for words in ("sketch in art: Ready", "sketch in claim models", "2.1 GB in 12 files, 500 MB"):
        assert words in text


def test_the_panel_of_a_stalled_model_names_the_remedy() -> None:
    """Word for word."""
    text = printed(views.model_panel(STALLED, [], NOW))
    assert "✗ Stalled=True SourceNotFound: HTTP 404" in text
    assert Reason.SOURCE_NOT_FOUND.remedy in text


def test_the_panel_of_a_running_load_has_a_bar() -> None:
    """Beside the words."""
    text = printed(views.model_panel(resource(phase="Downloading", progress=PROGRESS), [], NOW))
    assert f"Downloading: {PROGRESS['text']}" in text
    assert "━" in text


def test_the_panel_has_the_events() -> None:
    """With their age; what would steer the terminal is not passed on."""
    event = {
        "lastTimestamp": times.stamp(NOW - timedelta(seconds=50)),
        "reason": "LoadStarted",
        "message": "\x1b[2Jgone [bold]",
    }
    text = printed(views.model_panel(READY, [event], NOW))
    assert "50 s ago  LoadStarted: �[2Jgone [bold]" in text


@pytest.mark.parametrize(
    ("item", "settled"),
    [
        pytest.param(READY, True, id="loaded"),
        pytest.param(STALLED, True, id="stalled"),
        pytest.param(body(), False, id="not looked at"),
        pytest.param(
            resource(condition("Ready"), seen=0, artifact=ARTIFACT), False, id="edit not looked at"
        ),
        pytest.param(
            resource(condition("Ready"), condition("Reconciling"), artifact=ARTIFACT),
            False,
            id="loading a new version",
        ),
        pytest.param(
            resource(
                condition("Ready"), artifact={**ARTIFACT, "immutablePath": f".store/uid/{'0' * 16}"}
            ),
            False,
            id="reload not looked at",
        ),
    ],
)
def test_status_watches_until_it_is_settled(item: dict[str, Any], settled: bool) -> None:
    """Loaded as asked for, or stalled."""
    assert views.is_settled(item) is settled


@pytest.mark.parametrize(
    ("given", "read"),
    [
        pytest.param("list -A", "list -A", id="none"),
        pytest.param("status a -n art", "-n art status a", id="short"),
        pytest.param("logs a --namespace=art -f", "--namespace=art logs a -f", id="with ="),
        pytest.param("--context x doctor", "--context x doctor", id="first already"),
        pytest.param("list -n", "-n list", id="without its value"),
    ],
)
def test_kubectls_options_may_stand_anywhere(given: str, read: str) -> None:
    """As users of kubectl write them."""
    assert options_first(given.split()) == read.split()


# The doctor.


def crd(**changes: Any) -> Any:
    """The CRD as a server has it."""
    found = custom_resource_definition()
    found["spec"]["versions"][0].update(changes)
    return found


def older() -> Any:
    """A CRD that lacks a field."""
    found = crd()
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["priority"]
    return found


def newer() -> Any:
    """A CRD with one more."""
    found = crd()
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["speed"] = {"type": "string"}
    return found


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        pytest.param(crd(), Level.OK, "sd-operator.dev/v1alpha1", id="as it should be"),
        pytest.param({}, Level.FAILED, "not installed", id="none"),
        pytest.param(None, Level.UNKNOWN, "may not read", id="not to be seen"),
        pytest.param(crd(served=False), Level.FAILED, "not served", id="not served"),
        pytest.param(older(), Level.FAILED, "it lacks spec.priority", id="older"),
        pytest.param(newer(), Level.WARNING, "does not know", id="newer"),
    ],
)
def test_the_crd(found: Any, level: Level, words: str) -> None:
    """It is there, served, and has every field."""
    finding = doctor.check_crd(found)
    assert finding.level is level
    assert words in finding.message


def pod(ready: str = "True") -> dict[str, Any]:
    """An operator's Pod."""
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
        pytest.param([pod("False")], Level.FAILED, id="none ready"),
        pytest.param([], Level.WARNING, id="none"),
        pytest.param(None, Level.UNKNOWN, id="not to be seen"),
    ],
)
def test_the_operator(pods: Any, level: Level) -> None:
    """It runs; elsewhere, perhaps."""
    assert doctor.check_operators(pods).level is level


def node(gpus: str | None) -> dict[str, Any]:
    """A node."""
    return {"status": {"allocatable": {"cpu": "2"} | ({"amd.com/gpu": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "level", "words"),
    [
        pytest.param([node("4"), node(None)], Level.OK, "4 amd.com/gpu on 1 of 2 nodes", id="one"),
        pytest.param([node(None)], Level.WARNING, "no node has amd.com/gpu", id="none"),
        pytest.param([node("0")], Level.WARNING, "no node has amd.com/gpu", id="broken"),
    ],
)
def test_gpus(nodes: Any, level: Level, words: str) -> None:
    """Of the resource that the operator is told to ask for."""
    finding = doctor.check_gpus(nodes, doctor.gpu_resource([pod()]))
    assert (finding.level, words in finding.message) == (level, True)


def claim(phase: str = "Bound", mode: str = "ReadWriteMany") -> dict[str, Any]:
    """A claim."""
    return {"spec": {"accessModes": [mode]}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("found", "level"),
    [
        pytest.param(claim(), Level.OK, id="shared"),
        pytest.param(claim(mode="ReadWriteOnce"), Level.WARNING, id="of one node"),
        pytest.param(claim("Pending"), Level.WARNING, id="pending"),
        pytest.param(claim("Lost"), Level.FAILED, id="lost"),
        pytest.param(None, Level.FAILED, id="none"),
    ],
)
def test_claims(found: Any, level: Level) -> None:
    """Bound, and for all nodes."""
    (finding,) = doctor.check_claims(SpaceView("art", [], claims={"models": found}))
    assert finding.level is level


@pytest.mark.parametrize(
    ("has", "level"),
    [
        pytest.param({"token", "host"}, Level.OK, id="there"),
        pytest.param({"host"}, Level.FAILED, id="without the key"),
        pytest.param(None, Level.FAILED, id="none"),
    ],
)
def test_secrets(has: set[str] | None, level: Level) -> None:
    """Those that models name, with the keys that are read."""
    model = body(credentialsSecretRef={"name": "hub"})
    (finding,) = doctor.check_keys(SpaceView("art", [model], keys={("Secret", "hub"): has}))
    assert (finding.level, finding.subject) == (level, "art: Secret hub")


def policy(*egress: Any, labels: Any = None, **spec: Any) -> dict[str, Any]:
    """A NetworkPolicy."""
    given = {"podSelector": {"matchLabels": labels or {}}, "policyTypes": ["Egress"], **spec}
    return {"metadata": {"name": "loader"}, "spec": {**given, "egress": list(egress)}}


DNS = {"ports": [{"port": 53, "protocol": "UDP"}]}
HTTPS = {"ports": [{"port": 443}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}


@pytest.mark.parametrize(
    ("policies", "level", "words"),
    [
        pytest.param([], Level.OK, "no NetworkPolicy", id="none"),
        pytest.param([policy(DNS, HTTPS)], Level.OK, "lets DNS", id="both"),
        pytest.param([policy(DNS), policy(HTTPS)], Level.OK, "lets DNS", id="by two"),
        pytest.param([policy({"to": []})], Level.OK, "lets DNS", id="all ports"),
        pytest.param([policy(DNS)], Level.FAILED, "no https (443)", id="names only"),
        pytest.param([policy(HTTPS)], Level.FAILED, "no DNS (53)", id="https only"),
        pytest.param([policy()], Level.FAILED, "no DNS (53) and no https (443)", id="nothing"),
        pytest.param(
            [policy({"ports": [{"port": 1, "endPort": 65535}]})], Level.OK, "lets", id="a range"
        ),
        pytest.param([policy(labels={"app": "web"})], Level.OK, "no NetworkPolicy", id="others"),
        pytest.param([policy(policyTypes=["Ingress"])], Level.OK, "no Network", id="ingress"),
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
            "no DNS",
            id="by expression",
        ),
    ],
)
def test_egress(policies: Any, level: Level, words: str) -> None:
    """The policies that hold the loader, taken together, let it reach names and https."""
    finding = doctor.check_egress(SpaceView("art", [], policies=policies))
    assert (finding.level, words in finding.message) == (level, True)


def test_what_may_not_be_seen_is_no_failure() -> None:
    """It is said, and no more."""
    cluster = ClusterView(None, None, None, [SpaceView("art", [])])
    levels = [finding.level for finding in doctor.examine(cluster)]
    assert set(levels) == {Level.UNKNOWN}
    assert len(levels) == 7


def test_missing_rights_are_named() -> None:
    """All of them."""
    finding = doctor.check_rights(SpaceView("art", [], denied=["create jobs.batch", "watch pods"]))
    assert finding.level is Level.FAILED
    assert "create jobs.batch, watch pods" in finding.message


@pytest.mark.parametrize("right", [" ".join(right) for right in doctor.RIGHTS])
def test_no_right_is_asked_for_that_the_operator_has_no_use_for(right: str) -> None:
    """The doctor's list keeps to the Role's."""
    verb, resource = right.split()
    kind, _, sub = resource.partition("/")
    plural, _, group = kind.partition(".")
    wanted = f"{plural}/{sub}" if sub else plural
    assert any(
        verb in rule["verbs"] and wanted in rule["resources"] and group in rule["apiGroups"]
        for rule in RULES
    )
