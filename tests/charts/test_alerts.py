"""Tests of when the alerts fire: those of the plain file, and those that the chart renders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api.reasons import Reason
from sd_operator.base.metrics import Metrics, ModelState
from sd_operator.gateway.metrics import GatewayMetrics
from tests.support.charts.helmcharts import OPERATOR, Json, of_kind, one, render
from tests.support.charts.prometheus import Labels, Prometheus, prometheus, promtool, scrape_config
from tests.support.processes import free_ports

ALERTS = OPERATOR / "files" / "alerts.yaml"
PLAIN = Path(__file__).with_name("alerts.yaml")
RELEASES = Path(__file__).with_name("alerts_of_releases.yaml")
ONE_RELEASE = Path(__file__).with_name("alerts_of_one_release.yaml")
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
THREE = {
    "one.yaml": ("sd-operator", "one"),
    "two.yaml": ("sd-operator-two", "one"),
    "other.yaml": ("sd-operator", "other"),
}
"""The name and namespace of the release whose rules a file has."""


def rules_of(release: str, namespace: str, job: str = "") -> Json:
    """Return the rules that the chart renders for a release."""
    values = {
        "metrics": {"prometheusRule": {"enabled": True, "job": job}},
        "gateway": {"enabled": True},
    }
    objects = render(values, release=release, namespace=namespace)
    spec: Json = one(objects, "PrometheusRule")["spec"]
    return spec


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """A folder with the rules of the three releases."""
    for name, (release, namespace) in THREE.items():
        (tmp_path / name).write_text(yaml.safe_dump(rules_of(release, namespace)))
    return tmp_path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_tried_both_ways(rule: dict[str, Any]) -> None:
    """Each alert has a test row in which the alert fires, and a row in which it does not."""
    rows = [
        row
        for case in yaml.safe_load(PLAIN.read_text())["tests"]
        for row in case["alert_rule_test"]
        if row["alertname"] == rule["alert"]
    ]
    assert any(row["exp_alerts"] for row in rows)
    assert any(not row["exp_alerts"] for row in rows)
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description"} <= rule["annotations"].keys()


def test_the_alerts_fire_when_they_should() -> None:
    """Prometheus' own tool evaluates the plain file, which needs no chart."""
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", PLAIN)


@pytest.mark.slow
def test_a_dead_operator_is_reported_beside_other_releases(rendered: Path) -> None:
    """SdOperatorDown fires although the release's gateway and another release's operator are up."""
    shutil.copy(RELEASES, rendered / "tests.yaml")
    for name in THREE:
        promtool("check", "rules", rendered / name)
    promtool("test", "rules", rendered / "tests.yaml")


@pytest.mark.parametrize("fires", [True, False], ids=["its rules", "the other release's rules"])
def test_alerts_are_about_one_release(rendered: Path, fires: bool) -> None:
    """Every alert fires in the rules of the release in trouble, and none in the other's rules."""
    tests = yaml.safe_load(ONE_RELEASE.read_text())
    (case,) = tests["tests"]
    (row,) = case["promql_expr_test"]
    fired = {re.findall(r'alertname="(\w+)"', sample["labels"])[0] for sample in row["exp_samples"]}
    assert fired == {rule["alert"] for rule in RULES}
    if not fires:
        tests["rule_files"] = ["other.yaml"]
        row["exp_samples"] = []
    (rendered / "tests.yaml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", rendered / "tests.yaml")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_exclude_only_known_reasons(rule: dict[str, Any]) -> None:
    """An alert excludes only reasons that have an alert of their own."""
    left_out = set()
    for operator, words in re.findall(r'reason(!~|!=)"([^"]*)"', rule["expr"]):
        left_out |= set(words.split("|") if operator == "!~" else [words])
    assert left_out & {reason.value for reason in Reason} <= {
        "InsufficientStorage",
        "ArtifactMissing",
    }


@pytest.mark.parametrize(
    ("job", "expected"),
    [("", "one/sd-operator"), ('pods of "art"', 'pods of \\"art\\"')],
    ids=["the monitors' job", "a job of another scrape"],
)
def test_every_series_is_matched_by_the_release(job: str, expected: str) -> None:
    """In rendered rules, each selector has the release's job; otherwise they equal the file."""
    plain = yaml.safe_load(ALERTS.read_text())
    rendered = rules_of("sd-operator", "one", job)
    for rule in (rule for group in plain["groups"] for rule in group["rules"]):
        selectors = re.findall(r"\bsdmodel_\w+(\{[^}]*\})?", rule["expr"])
        assert selectors
        assert all('job=~".*"' in selector for selector in selectors), rule["expr"]
        rule["expr"] = rule["expr"].replace('job=~".*"', f'job="{expected}"')
    assert rendered == plain


# The rules in a real Prometheus that scrapes processes as the chart's monitors say.


@contextmanager
def served(metrics: Metrics | GatewayMetrics, port: int) -> Iterator[None]:
    """Serve the metrics of a process."""
    _, stop = metrics.serve("127.0.0.1", port)
    try:
        yield
    finally:
        stop()


def wait_for_alerts(
    alert: str, prometheus: Prometheus, *expected: tuple[str | None, str | None]
) -> None:
    """Wait until exactly these pairs of job and namespace have an alert, pending or firing.

    The first evaluation may differ: before the first scrape, Prometheus knows no process.
    """

    def as_expected(found: dict[Labels, float]) -> bool:
        alerts = [dict(labels) for labels in found]
        return {(it.get("job"), it.get("namespace")) for it in alerts} == set(expected)

    prometheus.eventually(f'ALERTS{{alertname="{alert}"}}', as_expected)


@pytest.mark.parametrize("kind", ["podMonitor", "serviceMonitor"])
def test_a_real_prometheus_tells_operators_and_releases_apart(kind: str, tmp_path: Path) -> None:
    """Alerts about a missing operator or leader fire only for the release that has none."""
    values = {"metrics": {kind: {"enabled": True}}, "gateway": {"enabled": True}}
    monitors = [
        monitor
        for namespace in ("one", "other")
        for monitor in of_kind(render(values, namespace=namespace), kind[0].upper() + kind[1:])
    ]
    ports = free_ports(len(monitors))
    jobs = [f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in monitors]
    port = dict(zip(jobs, ports, strict=True))
    scrapes = [scrape_config(*pair) for pair in zip(monitors, ports, strict=True)]
    rules = {f"{name}.yaml": rules_of("sd-operator", name) for name in ("one", "other")}
    operator = Metrics()
    operator.leader.set(1)
    operator.show("uid", ModelState("art", "sketch", "Failed", "NotAModel"))
    with ExitStack() as stack:
        stack.enter_context(served(GatewayMetrics(), port["one/sd-operator-gateway"]))
        stack.enter_context(served(operator, port["other/sd-operator"]))
        running = stack.enter_context(prometheus(scrapes, rules, tmp_path))
        running.eventually("count(sdmodel_build_info)", lambda found: set(found.values()) == {2})
        wait_for_alerts("SdModelLoadStalled", running, (None, "art"))
        wait_for_alerts("SdOperatorDown", running, ("one/sd-operator", None))
        wait_for_alerts("SdOperatorNoLeader", running)

        with served(Metrics(), port["one/sd-operator"]):
            wait_for_alerts("SdOperatorDown", running)
            wait_for_alerts("SdOperatorNoLeader", running, ("one/sd-operator", "one"))
