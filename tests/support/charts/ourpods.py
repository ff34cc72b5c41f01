"""The Pods that the project creates, and Pods that the standard `restricted` rejects."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api.check import CheckedVersion, CheckRequest
from sd_operator.base.settings import LoaderSettings, Settings
from sd_operator.rules import manifests, volume_jobs
from tests.support.charts.helmcharts import FULL, env_of, of_kind, pod_of, render
from tests.support.paths import ROOT
from tests.support.rules.observed import UID, claim, model

Json = dict[str, Any]

GOLDEN = ROOT / "tests/operator/rules/golden"
CREDENTIALS = {"credentialsSecretRef": {"name": "token"}}
CHECK = CheckRequest(versions=(CheckedVersion(uid=UID, load_hash="0" * 16, model_id="sketch"),))
SWITCHED_ON = {"sweep": {"enabled": True}, "gateway": {"enabled": True}}


def job_pod(settings: Settings, *, remove: bool = False, **spec: Any) -> Json:
    """Return the Pod of a Job that the operator creates."""
    of = model(**spec)
    planned = (
        manifests.plan_remove(of, settings, "models", 0)
        if remove
        else manifests.plan_load(of, settings, claim(), 0)
    )
    return pod_of(manifests.build(planned, settings))


def golden_pod(path: Path) -> Json:
    """Return the Pod of a golden Job."""
    return pod_of(yaml.safe_load(path.read_text()))


def charts_settings(values: Json) -> Settings:
    """Return the settings of an operator that the chart installs."""
    return Settings.from_env(env_of(render(values)))


def chart_pods(values: Json) -> dict[str, Json]:
    """Return the Pod specs of the chart's objects, by kind and name of the object."""
    return {
        f"{item['kind']} {item['metadata']['name']}": pod_of(item)
        for kind in ("Deployment", "CronJob", "Pod")
        for item in of_kind(render(values), kind)
    }


# pytest collects all rows even if it runs no test, so the rows are functions that build the Pods.
JOB_PODS = [
    pytest.param(lambda: job_pod(Settings()), id="a load with a GPU"),
    pytest.param(lambda: job_pod(Settings(), verify={"render": False}), id="a load without a GPU"),
    pytest.param(lambda: job_pod(Settings(), **CREDENTIALS), id="a load with a token"),
    pytest.param(lambda: job_pod(Settings(), remove=True), id="a clean-up"),
    pytest.param(
        lambda: pod_of(volume_jobs.build_sweep("art", "sweep", "models", LoaderSettings())),
        id="a sweep",
    ),
    pytest.param(
        lambda: pod_of(volume_jobs.build_check("art", "check", "models", CHECK, LoaderSettings())),
        id="a check",
    ),
    pytest.param(
        lambda: job_pod(charts_settings({}), **CREDENTIALS), id="a load of the chart's operator"
    ),
    pytest.param(
        lambda: job_pod(charts_settings(FULL), **CREDENTIALS), id="a load with every value"
    ),
    pytest.param(
        lambda: job_pod(charts_settings(FULL), remove=True), id="a clean-up with every value"
    ),
    *(
        pytest.param(partial(golden_pod, path), id=f"golden {path.stem}")
        for path in sorted(GOLDEN.glob("*.yaml"))
    ),
]


def spoiled(path: str, value: Any) -> Json:
    """Return an admitted Pod with one field set, or removed if None, or with one list extended."""
    pod = copy.deepcopy(job_pod(Settings()))
    *steps, last = path.split(".")
    node: Any = pod
    for step in steps:
        node = node[int(step)] if step.isdecimal() else node.setdefault(step, {})
    if value is None:
        del node[last]
    elif isinstance(value, list):
        node[last] = [*node.get(last, ()), *value]
    else:
        node[last] = value
    return pod


C = "containers.0"
I = "initContainers.0"  # noqa: E741 - a short name, like C
SPOILED = [
    ("HostProcess", "securityContext.windowsOptions", {"hostProcess": True}),
    ("Host Namespaces", "hostNetwork", True),
    ("Host Namespaces", "hostPID", True),
    ("Host Namespaces", "hostIPC", True),
    ("Privileged Containers", f"{C}.securityContext.privileged", True),
    ("Capabilities", f"{C}.securityContext.capabilities.add", ["SYS_ADMIN"]),
    ("HostPath Volumes", "volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
    ("Host Ports", f"{C}.ports", [{"containerPort": 80, "hostPort": 80}]),
    (
        "Host Probes / Lifecycle Hooks",
        f"{C}.livenessProbe",
        {"httpGet": {"host": "10.0.0.1", "port": 80}},
    ),
    ("AppArmor", f"{C}.securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("SELinux", "securityContext.seLinuxOptions", {"type": "spc_t"}),
    ("SELinux", f"{C}.securityContext.seLinuxOptions", {"role": "admin"}),
    ("/proc Mount Type", f"{C}.securityContext.procMount", "Unmasked"),
    ("Seccomp", f"{C}.securityContext.seccompProfile", {"type": "Unconfined"}),
    ("Sysctls", "securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("Volume Types", "volumes", [{"name": "share", "nfs": {"server": "a", "path": "/"}}]),
    ("Privilege Escalation", f"{I}.securityContext.allowPrivilegeEscalation", None),
    ("Running as Non-root", "securityContext.runAsNonRoot", None),
    ("Running as Non-root", f"{I}.securityContext.runAsNonRoot", False),
    ("Running as Non-root user", "securityContext.runAsUser", 0),
    ("Seccomp (restricted)", "securityContext.seccompProfile", None),
    ("Capabilities (restricted): drop", f"{I}.securityContext.capabilities", None),
    ("Capabilities (restricted): add", f"{C}.securityContext.capabilities.add", ["CHOWN"]),
]
