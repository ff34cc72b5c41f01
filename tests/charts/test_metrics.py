"""Alerts and dashboard use existing metrics, and the dashboard shows what its titles say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sd_api import names
from sd_api.reasons import ReadyReason, Reason
from sd_api.status import Phase
from sd_operator.base.metrics import Component, Metrics, ModelState, PassResult
from sd_operator.gateway.metrics import GatewayMetrics
from sd_operator.resources.observed import Outcome
from tests.support.charts.helmcharts import OPERATOR, one, render
from tests.support.charts.prometheus import promtool

ALERTS = OPERATOR / "files" / "alerts.yaml"
DASHBOARD = OPERATOR / "files" / "dashboard.json"
BOARD = json.loads(DASHBOARD.read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
OF_THE_KUBELET = {
    f"kubelet_volume_stats_{kind}_bytes": {"namespace", "persistentvolumeclaim"}
    for kind in ("used", "capacity", "available")
}
OF_THE_SCRAPE = {"namespace", "job"}
"""Labels that every scraped series has."""
VALUES_OF = {
    "component": set(Component),
    "outcome": set(Outcome),
    "phase": set(Phase),
    "reason": {"", *ReadyReason, *Reason},
    "result": set(PassResult),
    "stage": {"total", names.CONTAINER_FETCH, names.CONTAINER_CONVERT},
}
"""The values that the operator writes for a label. `outcome` is matched for webhook calls only."""
OPEN_LABELS = {"code", "job", "namespace", "persistentvolumeclaim", "verb"}
"""Labels whose values come from the cluster, not from the operator."""


def queries() -> Iterator[str]:
    """Return all queries of the dashboard."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def queries_of(title: str) -> str:
    """Return the queries of the panel with this title, one on each line."""
    (panel,) = [panel for panel in BOARD["panels"] if panel["title"] == title]
    return "\n".join(target["expr"] for target in panel["targets"])


def series() -> dict[str, set[str]]:
    """Return the names and labels of all series of an operator, a gateway and a kubelet."""
    metrics, gateway = Metrics(), GatewayMetrics()
    metrics.show("uid", ModelState("art", "sketch", "Ready", ""))
    found = dict(OF_THE_KUBELET)
    for collector in [*vars(metrics).values(), *vars(gateway).values()]:
        if hasattr(collector, "_labelnames"):
            labels = set(collector._labelnames)
            kind = collector._type
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            for suffix in suffixes.get(kind, [""]):
                found[collector._name + suffix] = labels | (
                    {"le"} if suffix == "_bucket" else set()
                )
    for registry in (metrics.registry, gateway.registry):
        for family in registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set(sample.labels))
    return found


EXPRESSIONS = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(pytest.param(query, id=query) for query in queries()),
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_exists(expression: str) -> None:
    """Alerts and dashboard use existing metrics and labels: others would silently give no data."""
    known = series()
    metrics = set(re.findall(r"\b(?:sdmodel|kubelet)_\w+", expression))
    matched = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", expression))
    grouped = {
        label.strip()
        for labels in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in labels.split(",")
    }

    assert metrics
    assert metrics <= known.keys()
    assert matched | grouped <= OF_THE_SCRAPE.union(*(known[name] for name in metrics))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_matched_value_is_written_by_the_operator(expression: str) -> None:
    """A misspelled value with != matches everything, so an alert would fire on success."""
    for label, operator, text in re.findall(r"(\w+)\s*([=!]~|!?=)\s*\"([^\"]*)\"", expression):
        if label not in OPEN_LABELS:
            values = text.split("|") if operator.endswith("~") else [text]
            assert set(values) <= VALUES_OF[label], f"{label}{operator}{text}"


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.glob("alerts*.yaml")), ids=lambda path: path.name
)
def test_the_alerts_are_tried_with_values_that_the_operator_writes(path: Path) -> None:
    """The series of the alerts' tests have only label values that the operator writes."""
    for case in yaml.safe_load(path.read_text())["tests"]:
        for row in case["input_series"]:
            for label, value in re.findall(r"(\w+)=\"([^\"]*)\"", row["series"]):
                assert value in VALUES_OF.get(label, {value}), row["series"]


@pytest.mark.parametrize("name", sorted({"sdmodel_models", "sdmodel_info"} | OF_THE_KUBELET.keys()))
def test_series_of_models_and_volumes_are_filtered_by_the_chosen_namespace(name: str) -> None:
    """Each query of these series has the chosen namespace; without it, all models are shown."""
    for query in queries():
        selectors = re.findall(rf"\b{name}\b(\{{[^}}]*\}})?", query)
        assert all('namespace=~"$namespace"' in selector for selector in selectors), query


def test_every_panel_that_can_be_filtered_is_filtered_or_says_otherwise() -> None:
    """In the rows on models and loads, a panel that shows all namespaces has this in its title."""
    row = ""
    for panel in BOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        elif row in ("Models", "Loads"):
            filtered = all('namespace=~"$namespace"' in one["expr"] for one in panel["targets"])
            assert filtered == ("all namespaces" not in panel["title"]), panel["title"]


def test_the_namespace_can_be_chosen() -> None:
    """The variable offers the namespaces that have models; at first, all are chosen."""
    (variable,) = [one for one in BOARD["templating"]["list"] if one["name"] == "namespace"]
    assert variable["query"] == "label_values(sdmodel_models, namespace)"
    assert variable["multi"]
    assert variable["includeAll"]
    assert variable["current"]["value"] == ["$__all"]


def test_operators_and_gateways_are_counted_apart() -> None:
    """Each query of sdmodel_build_info, which both serve, selects a component."""
    assert 'sdmodel_build_info{component="operator"}' in queries_of("Operators running and leading")
    assert 'sdmodel_build_info{component="gateway"}' in queries_of("Gateways running")
    for query in queries():
        assert ("sdmodel_build_info" in query) == ("component=" in query), query


@pytest.mark.parametrize("query", [query for query in queries() if "load_duration" in query])
def test_times_of_stages_are_not_mixed(query: str) -> None:
    """Each query of the times of loads selects one stage or groups by the stage.

    A load has a time for each stage and one in total; a quantile of both means nothing.
    """
    one_stage = re.search(r'stage="\w+"', query)
    each_stage = re.search(r"\bby \(stage, le\)", query)
    assert one_stage or each_stage


def test_panels_do_not_overlap() -> None:
    """Grafana would move overlapping panels. The ids of the panels are unique."""
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_the_dashboards_queries_parse(tmp_path: Path) -> None:
    """Promtool parses each query as the expression of a rule."""
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries())]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)


def test_the_chart_carries_the_dashboard_unchanged() -> None:
    """The dashboard in the ConfigMap equals the file: Helm does not interpret Grafana's braces."""
    objects = render({"metrics": {"dashboard": {"enabled": True}}})
    (text,) = one(objects, "ConfigMap")["data"].values()
    assert json.loads(text) == BOARD
