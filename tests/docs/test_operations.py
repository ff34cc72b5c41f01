"""The commands of docs/operations.md and docs/troubleshooting.md run, and their values exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from sd_api import names
from sd_operator.base.settings import LoaderSettings
from tests.support.charts.helmcharts import (
    OPERATOR,
    ROOT,
    helm,
    helm_path,
    of_kind,
    one,
    pod_of,
    render,
)
from tests.support.charts.pod_security import violations
from tests.support.kube.cluster import Cluster
from tools.kubectl import kubectl_path

TEXT = (ROOT / "docs" / "operations.md").read_text()
VALUES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
OUTSIDE_BLOCKS = re.sub("|".join(map(re.escape, VALUES)), "", TEXT)
COMMANDS = re.findall(r"^    (\S.*)$", OUTSIDE_BLOCKS, re.MULTILINE)
MENDING = (ROOT / "docs" / "troubleshooting.md").read_text()
KUBECTL = [
    command
    for command in COMMANDS
    + re.findall(r"^    (kubectl .*)$", MENDING, re.MULTILINE)
    + re.findall(r"`(kubectl [^`]*)`", TEXT + MENDING)
    if " sdm" in command
]
HELM = [line for line in COMMANDS if re.match(r"helm (install|upgrade) ", line)]


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text.partition("\n")[0])
def test_every_block_of_values_is_valid(text: str) -> None:
    """The chart's schema accepts the values, and the rendered Pods pass the restricted standard."""
    values = yaml.safe_load(text)
    objects = render(values)
    assert objects != render()
    for kind in ("Deployment", "CronJob", "Pod"):
        for item in of_kind(objects, kind):
            assert violations(pod_of(item)) == []


OF_THE_CLUSTER = {"--create-namespace", "--reset-then-reuse-values"}
"""Options of install and upgrade that `template` does not have."""


@pytest.mark.parametrize("command", HELM)
def test_every_helm_command_runs(command: str) -> None:
    """Each command is run from the repository's root, but only renders the objects."""
    arguments = [
        str(ROOT / word) if word.startswith("charts/") else word
        for word in shlex.split(command)[2:]
        if word not in OF_THE_CLUSTER
    ]
    done = helm("template", *arguments)
    assert done.returncode == 0, done.stderr
    assert "apiVersion" in done.stdout


@pytest.mark.cluster
@pytest.mark.parametrize("command", KUBECTL)
def test_every_kubectl_command_about_models_runs(shared_cluster: Cluster, command: str) -> None:
    """A model called NAME exists, in a test namespace that replaces `sd-system`."""
    if "| jq " in command and shutil.which("jq") is None:
        pytest.skip("jq is not on PATH: apt install jq")
    shared_cluster.model("name", url="org/name")
    here = command.replace("NAME", "name").replace("sd-system", shared_cluster.namespace)
    given = f"--kubeconfig={shared_cluster.kubeconfig} --namespace={shared_cluster.namespace}"
    script = f'kubectl() {{ {kubectl_path()} {given} "$@"; }}; {here}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_list_of_images_is_complete() -> None:
    """The page's command prints the images of the operator, the loader and the slim loader."""
    (command,) = [line for line in COMMANDS if line.startswith("helm template")]
    path = f"{helm_path().parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True
    )
    registry = "ghcr.io/sd-operator"
    version = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())["appVersion"]
    images = {LoaderSettings().image, LoaderSettings().slim_image, f"{registry}/operator:{version}"}
    assert set(done.stdout.split()) == images


def test_what_an_uninstall_leaves_is_named() -> None:
    """The page deletes the test's Pod, which Helm keeps, and the Lease, which Helm did not make."""
    (pod,) = of_kind(render(), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "hook-succeeded" not in pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    left = {("pod", pod["metadata"]["name"]), ("lease", names.FIELD_MANAGER)}
    deleted = {tuple(line.split()[2:4]) for line in COMMANDS if line.startswith("kubectl delete ")}
    assert left <= deleted


def test_every_alert_is_on_the_page() -> None:
    """The page lists exactly the alerts of the chart."""
    groups = yaml.safe_load((OPERATOR / "files" / "alerts.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert set(re.findall(r"^\| (Sd\w+) \|", TEXT, re.MULTILINE)) == alerts


def test_the_command_for_one_release_gives_the_rules_of_the_chart() -> None:
    """The page's command prints a rules file for the release that the page installs."""
    (command,) = [line for line in COMMANDS if line.startswith("sed ") and "alerts.yaml" in line]
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    objects = render({"metrics": {"prometheusRule": {"enabled": True}}})
    assert yaml.safe_load(done.stdout) == one(objects, "PrometheusRule")["spec"]


def test_the_values_that_the_pages_name_exist() -> None:
    """A word in backticks counts as a value if it looks like the path of a value."""
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text())
    for text in (TEXT, MENDING):
        for name in re.findall(r"`((?:\w+\.)+\w+)(?:: [^`]*)?`", text):
            first, *_ = name.split(".")
            node = values
            if first in values:
                for step in name.split("."):
                    assert step in node, name
                    node = node[step]
