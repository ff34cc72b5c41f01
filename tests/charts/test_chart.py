"""Tests of the chart sd-operator: its values, its schema and the objects that it renders."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api.crd import custom_resource_definition
from sd_operator.resources.claim import ClaimView
from tests.support.charts.helmcharts import (
    CATALOG,
    CHARTS,
    FULL,
    NAMESPACE,
    OPERATOR,
    ROOT,
    VALUES,
    Json,
    at,
    helm,
    leaves,
    of_kind,
    one,
    pod_of,
    render,
    with_value,
)

PROGRAMS = ("helm", "helm3")
BY_DEFAULT = {
    ("ClusterRole", "sd-system-sd-operator-edit"),
    ("ClusterRole", "sd-system-sd-operator-namespaces"),
    ("ClusterRole", "sd-system-sd-operator-view"),
    ("ClusterRoleBinding", "sd-system-sd-operator-namespaces"),
    ("CustomResourceDefinition", "stablediffusionmodels.sd-operator.dev"),
    ("Deployment", "sd-operator"),
    ("NetworkPolicy", "sd-operator-loader"),
    ("NetworkPolicy", "sd-operator-loader-egress"),
    ("PersistentVolumeClaim", "models"),
    ("Pod", "sd-operator-test"),
    ("PodDisruptionBudget", "sd-operator"),
    ("Role", "sd-operator"),
    ("Role", "sd-operator-leader"),
    ("RoleBinding", "sd-operator"),
    ("RoleBinding", "sd-operator-leader"),
    ("Service", "sd-operator"),
    ("ServiceAccount", "sd-operator"),
}
NO_KUBERNETES_KINDS = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "StableDiffusionModel"}


def test_a_long_name_of_a_release_gives_names_that_an_api_server_accepts() -> None:
    """With suffixes, a Service's name has no dot, and a CronJob's has at most 52 characters."""
    objects = render({**FULL, "fullnameOverride": "models." * 9 + "eu"})
    longest = {"CronJob": 52, "Service": 63, "Deployment": 63}
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    limited = {(kind, name) for kind, name in names if kind in longest}
    assert {kind for kind, _ in limited} == set(longest)
    assert {(kind, name) for kind, name in limited if len(name) > longest[kind]} == set()
    assert {(kind, name) for kind, name in limited if "." in name or "--" in name} == set()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("chart", [OPERATOR, CATALOG], ids=lambda path: path.name)
@pytest.mark.parametrize("full", [False, True], ids=["by default", "full"])
def test_helm_lint_passes(program: str, chart: Path, full: bool) -> None:
    """Helm reports neither errors nor warnings."""
    values = FULL if full and chart == OPERATOR else {}
    done = helm("lint", "--strict", chart, values=values, program=program)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_values_every_needed_object_is_rendered() -> None:
    """By default, no object needs a CRD of another operator."""
    assert {(item["kind"], item["metadata"]["name"]) for item in render()} == BY_DEFAULT


@pytest.mark.parametrize("values", [{}, FULL], ids=["by default", "full"])
def test_both_helms_render_the_same(values: Json) -> None:
    """The newest Helm and the oldest Helm that the chart supports render equal objects."""
    by_both = [
        sorted(render(values, program=program), key=lambda item: repr(item["metadata"]))
        for program in PROGRAMS
    ]
    assert by_both[0] == by_both[1]


def test_every_value_is_explained() -> None:
    """Each line of values.yaml that names a value has a comment above it."""
    lines = (OPERATOR / "values.yaml").read_text().splitlines()
    unexplained = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r" *[A-Za-z]+:", line) and not before.lstrip().startswith("#")
    ]
    # Keys inside defaults that are lists or objects of Kubernetes.
    ours = {"namespaceSelector", "matchLabels", "podSelector", "cidr", "operator", "effect"}
    known = {"requests", "limits", "cpu", "memory"} | ours
    assert [line for line in unexplained if line.strip().partition(":")[0] not in known] == []


def value_paths() -> list[tuple[str, ...]]:
    """Return the paths of all values. Resources and labels count as one value each."""
    found = []
    for path in leaves(VALUES):
        end = next((n for n, key in enumerate(path, 1) if key in ("resources", "labels")), None)
        found.append(path[:end])
    return list(dict.fromkeys(found))


PATHS = value_paths()
SHARE = 10
"""The usual run renders one in this many values; the slow run renders all."""


def test_full_values_differ_from_every_default() -> None:
    """Each new value must be added to FULL; only switches may have their defaults there."""
    same = {path for path in PATHS if at(FULL, path) == at(VALUES, path)}
    switches = {path for path in same if isinstance(at(VALUES, path), bool)}
    assert same == switches


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=".".join(path), marks=pytest.mark.slow if number % SHARE else ())
        for number, path in enumerate(PATHS)
    ],
)
def test_every_value_has_an_effect(path: tuple[str, ...]) -> None:
    """If one value is reset to its default, or a switch is flipped, the rendered objects change."""
    value = at(VALUES, path)
    base = FULL if path[0] == "crd" else with_value(FULL, ("crd", "install"), False)
    if path[-1] == "tag":
        base = with_value(base, (*path[:-1], "digest"), "")
    if path[:2] == ("metrics", "serviceMonitor"):
        base = with_value(base, ("metrics", "podMonitor", "enabled"), False)
        base = with_value(base, ("metrics", "serviceMonitor", "enabled"), True)
    if path == ("networkPolicy", "apiServer", "to"):
        value = [{"ipBlock": {"cidr": "10.0.0.2/32"}}]  # without it the policy is refused
    if isinstance(value, bool) and value == at(base, path):
        value = not value
    assert render(with_value(base, path, value)) != render(base)


def test_the_notes_show_the_next_steps() -> None:
    """The notes also mention values that differ from the defaults."""
    values = {"loader": {"gpu": {"count": 0}}, "proxy": {"https": "http://proxy:3128"}}
    by_default, other = (
        helm(
            *("install", "sd", OPERATOR, "--dry-run=client", "--namespace", NAMESPACE),
            values=given,
        )
        for given in ({}, values)
    )
    assert by_default.returncode == 0, by_default.stderr
    notes = by_default.stdout.partition("NOTES:")[2]
    assert f"kubectl apply -n {NAMESPACE} -f -" in notes
    assert f"helm test -n {NAMESPACE} sd" in notes
    assert "served with gateway.enabled" in notes
    assert "No GPU" not in notes
    assert "No GPU is asked for" in other.stdout
    assert "add it to loader.extraEgress" in other.stdout


def test_the_crd_is_that_of_the_repository() -> None:
    """Helm keeps the CRD when the release is removed, unless the values say otherwise."""
    committed = (ROOT / "crds" / "stablediffusionmodels.yaml").read_text()
    assert (OPERATOR / "files" / "stablediffusionmodels.yaml").read_text() == committed
    rendered = one(render(), "CustomResourceDefinition")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    del rendered["metadata"]["labels"]
    assert rendered == custom_resource_definition()
    assert (
        "annotations"
        not in one(render({"crd": {"keep": False}}), "CustomResourceDefinition")["metadata"]
    )
    assert not of_kind(render({"crd": {"install": False}}), "CustomResourceDefinition")


def test_chart_and_distribution_have_one_version() -> None:
    """Both charts have the version of pyproject.toml."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for chart in (OPERATOR, CATALOG):
        about = yaml.safe_load((chart / "Chart.yaml").read_text())
        assert version is not None
        assert about["version"] == about["appVersion"] == version[1]


def versions() -> list[Any]:
    """Return Kubernetes versions from 1.28 on; the usual run tries the oldest."""
    try:
        from kubernetes_validate.utils import all_versions, major_minor
    except ImportError:
        reason = "kubernetes-validate is not installed: pip install -e .[dev]"
        return [pytest.param("1.28", marks=pytest.mark.skip(reason=reason))]
    every = dict.fromkeys(major_minor(version) for version in all_versions())
    supported = [version for version in every if int(version.partition(".")[2]) >= 28]
    return [
        pytest.param(version, marks=pytest.mark.slow if number else ())
        for number, version in enumerate(supported)
    ]


@pytest.mark.parametrize("version", versions())
def test_kubernetes_knows_every_field(version: str) -> None:
    """Strict validation of the rendered objects finds no unknown field."""
    import kubernetes_validate

    cluster_wide = with_value(FULL, ("models", "clusterWide"), True)
    unique = {repr(item): item for values in ({}, FULL, cluster_wide) for item in render(values)}
    for item in unique.values():
        if item["kind"] not in NO_KUBERNETES_KINDS:
            kubernetes_validate.validate(item, version, strict=True)


def test_the_operator_is_redundant_probed_and_restricted() -> None:
    """Two replicas are spread over nodes, with a disruption budget, probes and few privileges."""
    objects = render()
    deployment = one(objects, "Deployment")
    pod = pod_of(deployment)
    (container,) = pod["containers"]

    assert deployment["spec"]["replicas"] == 2
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert spread["labelSelector"] == deployment["spec"]["selector"]
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not of_kind(render({"replicas": 1}), "PodDisruptionBudget")
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "probes"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "probes"}
    assert [port["containerPort"] for port in container["ports"]] == [8080, 8081]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"name": "LOGNAME", "value": "sd-operator"} in container["env"]


def test_selectors_find_the_operator_and_nothing_else() -> None:
    """Service, budget and monitor select labels that an upgrade does not change."""
    objects = render({"metrics": {"podMonitor": {"enabled": True}}})
    selector = one(objects, "Deployment")["spec"]["selector"]["matchLabels"]

    assert not {"app.kubernetes.io/version", "helm.sh/chart"} & selector.keys()
    assert one(objects, "Service")["spec"]["selector"] == selector
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selector
    assert one(objects, "PodMonitor")["spec"]["selector"]["matchLabels"] == selector
    test = one(objects, "Pod")["metadata"]["labels"]
    assert not selector.items() <= test.items()


def test_each_namespace_has_a_pvc_that_helm_keeps() -> None:
    """By default only the release's namespace has a PVC."""
    (claim,) = of_kind(render(), "PersistentVolumeClaim")
    assert claim["metadata"]["namespace"] == NAMESPACE
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert ClaimView.from_body(claim | {"metadata": claim["metadata"] | {"uid": "c"}}).for_models
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "200Gi"}},
    }
    by_hand = render({"models": {"claim": {"storageClassName": "-"}}})
    assert one(by_hand, "PersistentVolumeClaim")["spec"]["storageClassName"] == ""
    several = of_kind(render({"models": {"namespaces": ["art", "ads"]}}), "PersistentVolumeClaim")
    assert [item["metadata"]["namespace"] for item in several] == ["art", "ads"]


def test_the_sweep_runs_the_loader_without_the_operators_labels() -> None:
    """The sweep's Job does not have the label by which the operator selects its own Jobs."""
    cron = one(render({"sweep": {"enabled": True}}), "CronJob")
    template = cron["spec"]["jobTemplate"]["spec"]["template"]
    (container,) = template["spec"]["containers"]

    assert container["command"] + container["args"] == [
        *("sd-loader", "sweep", "--store", "/models", "--delete")
    ]
    assert "app.kubernetes.io/managed-by" not in template["metadata"]["labels"]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_sweeps_command_runs(tmp_path: Path) -> None:
    """The command of the sweep's Pod succeeds on a volume without models."""
    cron = one(render({"sweep": {"enabled": True}}), "CronJob")
    (container,) = pod_of(cron)["containers"]
    arguments = [str(tmp_path) if word == "/models" else word for word in container["args"]]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    done = subprocess.run(
        [sys.executable, "-m", "sd_loader", *arguments], env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_make_chart_packages_both(tmp_path: Path) -> None:
    """A packaged chart renders the same objects as its folder."""
    for chart in (OPERATOR, CATALOG):
        done = helm("package", chart, "--destination", tmp_path)
        assert done.returncode == 0, done.stderr
    version = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())["version"]
    package = tmp_path / f"sd-operator-{version}.tgz"
    with tarfile.open(package) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    there = {
        str(path.relative_to(OPERATOR))
        for path in OPERATOR.rglob("*")
        if path.is_file() and path.name != ".helmignore"
    }
    assert there <= packed
    assert render(chart=package) == render()
    assert (tmp_path / f"sd-models-{version}.tgz").exists()
    assert "charts/*" in (ROOT / "Makefile").read_text()
    assert sorted(path.name for path in CHARTS.iterdir()) == ["sd-models", "sd-operator"]
