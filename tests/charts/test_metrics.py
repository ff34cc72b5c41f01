"""Alerts and dashboard use existing metrics, and alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sd_api.reasons import Reason
from sd_operator.base.metrics import Metrics, ModelState
from tests.support.charts.helmcharts import OPERATOR, one, render

ALERTS = OPERATOR / "files" / "alerts.yaml"
DASHBOARD = OPERATOR / "files" / "dashboard.json"
UNIT_TESTS = Path(__file__).with_name("alerts.yaml")
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: object) -> str:
    """Run promtool, which must succeed, and return its output. Skip if it is not installed."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not on PATH: apt install prometheus")
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> Iterator[str]:
    """Return all queries of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def series() -> dict[str, set[str]]:
    """Return the names and labels of all series of an operator."""
    metrics = Metrics()
    metrics.show("uid", ModelState("art", "sketch", "Ready", ""))
    found: dict[str, set[str]] = {}
    for collector in vars(metrics).values():
        if hasattr(collector, "_labelnames"):
            labels = set(collector._labelnames)
            kind = collector._type
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            for suffix in suffixes.get(kind, [""]):
                found[collector._name + suffix] = labels | (
                    {"le"} if suffix == "_bucket" else set()
                )
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set(sample.labels))
    return found


EXPRESSIONS = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(pytest.param(query, id=query) for query in queries()),
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_exists(expression: str) -> None:
    """A query of a metric that does not exist would silently return no data."""
    known = series()
    metrics = set(re.findall(r"\bsdmodel_\w+", expression))
    matched = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", expression))
    grouped = {
        label.strip()
        for labels in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in labels.split(",")
    }

    assert metrics
    assert metrics <= known.keys()
    assert matched | grouped <= set().union(*(known[name] for name in metrics))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_tried_both_ways(rule: dict[str, Any]) -> None:
    """Each alert has a row in which it fires and one in which it does not fire."""
    rows = [
        row
        for case in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for row in case["alert_rule_test"]
        if row["alertname"] == rule["alert"]
    ]
    assert any(row["exp_alerts"] for row in rows)
    assert any(not row["exp_alerts"] for row in rows)
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description"} <= rule["annotations"].keys()


def test_the_alerts_fire_when_they_should() -> None:
    """Prometheus' own tool evaluates them."""
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", UNIT_TESTS)


def test_the_dashboards_queries_parse(tmp_path: Path) -> None:
    """Promtool parses each query as the expression of a rule."""
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries())]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_exclude_only_known_reasons(rule: dict[str, Any]) -> None:
    """Another alert covers the one reason that an alert may exclude."""
    left_out = set()
    for operator, words in re.findall(r'reason(!~|!=)"([^"]*)"', rule["expr"]):
        left_out |= set(words.split("|") if operator == "!~" else [words])
    assert left_out & {reason.value for reason in Reason} <= {"InsufficientStorage"}


def test_the_chart_carries_both_unchanged() -> None:
    """Helm does not interpret the braces of Prometheus and Grafana."""
    objects = render(
        {"metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}}
    )
    assert one(objects, "PrometheusRule")["spec"] == yaml.safe_load(ALERTS.read_text())
    (text,) = one(objects, "ConfigMap")["data"].values()
    assert json.loads(text) == json.loads(DASHBOARD.read_text())
