"""Every Pod of the project passes the Pod Security Standard `restricted`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.charts.helmcharts import FULL, VALUES, Json
from tests.support.charts.ourpods import JOB_PODS, SPOILED, SWITCHED_ON, chart_pods, spoiled
from tests.support.charts.pod_security import BASELINE, RESTRICTED, violations


@pytest.mark.parametrize("pod", JOB_PODS)
def test_the_pod_is_admitted(pod: Callable[[], Json]) -> None:
    """No control of the standard rejects the Pod."""
    assert violations(pod()) == []


@pytest.mark.parametrize("values", [SWITCHED_ON, FULL], ids=["by default", "full"])
def test_the_pods_of_the_chart_are_admitted(values: Json) -> None:
    """No control of the standard rejects a Pod of the chart."""
    pods = chart_pods(values)
    assert {name.partition(" ")[0] for name in pods} == {"Deployment", "CronJob", "Pod"}
    assert [(name, violations(pod)) for name, pod in pods.items() if violations(pod)] == []


@pytest.mark.parametrize("pod", JOB_PODS)
def test_a_loader_has_no_token_and_a_read_only_root(pod: Callable[[], Json]) -> None:
    """By default, loader Pods have no token and a read-only root, beyond the standard's rules."""
    spec = pod()
    assert spec["automountServiceAccountToken"] is False
    containers = spec["containers"] + spec.get("initContainers", [])
    if VALUES["loader"]["securityContext"] == {} and "fsGroup" in spec["securityContext"]:
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in containers)


@pytest.mark.parametrize(("control", "path", "value"), SPOILED)
def test_a_spoiled_pod_is_refused(control: str, path: str, value: Any) -> None:
    """One field is changed, and the control for that field rejects the Pod."""
    found = violations(spoiled(path, value))

    assert control in {one.partition(": ")[0] for one in found} | {
        one.rpartition(": ")[0] for one in found
    }


def test_every_control_is_tried() -> None:
    """Each control rejects at least one Pod of the table."""
    assert {control for control, _, _ in SPOILED} == {one.name for one in BASELINE + RESTRICTED}
