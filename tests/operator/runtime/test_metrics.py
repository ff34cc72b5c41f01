"""Tests of metrics and probes with the requests of Prometheus and the kubelet."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sd_operator.base.metrics import CheckOutcome, Metrics, ModelState, installed_version
from sd_operator.base.probes import SILENCE_MAX_SECONDS, Probes
from sd_operator.resources.observed import Outcome


def get(port: int, path: str) -> tuple[int, str]:
    """Return the status and the body of a GET on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def scrape(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and the values of its sorted labels."""
    port, stop = metrics.serve("127.0.0.1", 0)
    try:
        _, text = get(port, "/metrics")
    finally:
        stop()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def state(name: str, phase: str = "Ready", **fields: int) -> ModelState:
    """A model of namespace `art`."""
    return ModelState("art", name, phase, "", **fields)


def of_namespace(namespace: str, model: ModelState) -> ModelState:
    """Return the model with this namespace."""
    return replace(model, namespace=namespace)


def test_models_are_counted_and_named() -> None:
    """Models are counted by phase and reason, and each has a series that alerts can name."""
    metrics = Metrics()
    metrics.show("1", state("a", artifact_bytes=10, shared_bytes=1, missing=True))
    metrics.show("2", state("b", artifact_bytes=20))
    metrics.show("3", state("c", "Failed"))
    metrics.show("3", state("c", "Downloading"))
    metrics.show("4", state("d"))
    metrics.forget("4")
    metrics.show("5", of_namespace("ads", state("a", artifact_bytes=5)))
    samples = scrape(metrics)
    assert samples["sdmodel_models", "art", "Ready", ""] == 2
    assert samples["sdmodel_models", "ads", "Ready", ""] == 1
    assert samples["sdmodel_models", "art", "Downloading", ""] == 1
    assert ("sdmodel_models", "art", "Failed", "") not in samples
    assert samples["sdmodel_info", "c", "art", "Downloading", ""] == 1
    assert ("sdmodel_info", "d", "art", "Ready", "") not in samples
    assert samples["sdmodel_artifact_size_bytes", "art"] == 30
    assert samples["sdmodel_artifact_size_bytes", "ads"] == 5
    assert samples["sdmodel_artifact_shared_bytes", "art"] == 1
    assert samples["sdmodel_artifacts_missing", "art"] == 1
    assert samples["sdmodel_artifacts_missing", "ads"] == 0


def test_requests_loads_and_build_have_metrics() -> None:
    """Requests, loads and the build have the names and labels that dashboards use."""
    metrics = Metrics()
    metrics.count_request("get", "jobs", "200")
    metrics.loads.labels("art", "custom_ckpt", "failed", "NotAModel").inc()
    metrics.load_seconds.labels("custom_ckpt", "total").observe(42)
    samples = scrape(metrics)
    assert samples["sdmodel_api_requests_total", "200", "jobs", "get"] == 1
    assert samples["sdmodel_loads_total", "custom_ckpt", "art", "failed", "NotAModel"] == 1
    assert samples["sdmodel_load_duration_seconds_count", "custom_ckpt", "total"] == 1
    assert samples["sdmodel_build_info", "operator", installed_version()] == 1


# All metrics of the operator, with their types and labels. Only sdmodel_info names a model, so
# that every other metric has few series.
EXPECTED = {
    "sdmodel_reconcile_total": ("counter", {"result"}),
    "sdmodel_reconcile_duration_seconds": ("histogram", set()),
    "sdmodel_models": ("gauge", {"namespace", "phase", "reason"}),
    "sdmodel_info": ("gauge", {"namespace", "name", "phase", "reason"}),
    "sdmodel_loads_total": ("counter", {"namespace", "model_type", "outcome", "reason"}),
    "sdmodel_load_duration_seconds": ("histogram", {"model_type", "stage"}),
    "sdmodel_load_jobs_active": ("gauge", set()),
    "sdmodel_queue_length": ("gauge", set()),
    "sdmodel_artifact_size_bytes": ("gauge", {"namespace"}),
    "sdmodel_artifact_shared_bytes": ("gauge", {"namespace"}),
    "sdmodel_artifacts_missing": ("gauge", {"namespace"}),
    "sdmodel_checks_total": ("counter", {"outcome"}),
    "sdmodel_source_bytes_total": ("counter", {"namespace"}),
    "sdmodel_webhook_deliveries_total": ("counter", {"outcome"}),
    "sdmodel_webhook_delivery_duration_seconds": ("histogram", set()),
    "sdmodel_api_requests_total": ("counter", {"verb", "resource", "code"}),
    "sdmodel_leader": ("gauge", set()),
    "sdmodel_namespace_served": ("gauge", {"namespace"}),
    "sdmodel_build_info": ("gauge", {"component", "version"}),
}


def test_every_metric_has_a_name_type_labels_and_help() -> None:
    """/metrics has exactly the metrics of EXPECTED, each with a help text."""
    metrics = Metrics()
    metrics.show("1", state("a"))
    metrics.count_request("get", "jobs", "200")
    metrics.reconciles.labels("ok").inc()
    metrics.loads.labels("art", "custom_ckpt", "loaded", "").inc()
    metrics.source_bytes.labels("art").inc()
    metrics.namespace_served.labels("art").set(1)
    metrics.load_seconds.labels("custom_ckpt", "total").observe(42)
    metrics.deliveries.labels(Outcome.DELIVERED.value).inc()
    metrics.checks.labels(CheckOutcome.COMPLETE.value).inc()
    port, stop = metrics.serve("127.0.0.1", 0)
    try:
        _, text = get(port, "/metrics")
    finally:
        stop()
    found = {}
    for family in text_string_to_metric_families(text):
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        suffix = "_total" if family.type == "counter" else ""
        if not all(one.name.endswith("_created") for one in family.samples):
            found[family.name + suffix] = (family.type, labels)
        assert len(family.documentation) > 10 or family.name == "sdmodel_build_info"
    assert found == EXPECTED


def test_two_operators_may_live_in_one_process() -> None:
    """Each operator has its own registry."""
    first, second = Metrics(), Metrics()
    first.reconciles.labels("ok").inc()
    assert ("sdmodel_reconcile_total", "ok") not in scrape(second)


class Clock:
    """A clock that stands still unless a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        """Return the current time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that the test moves."""
    return Clock()


@pytest.fixture
def probes(clock: Clock) -> Probes:
    """Probes with the clock of the test."""
    return Probes(clock)


@pytest.fixture
def port(probes: Probes) -> Iterator[int]:
    """The port of the probes."""
    port, stop = probes.serve("127.0.0.1", 0)
    yield port
    stop()


def test_ready_comes_with_the_end_of_the_start(probes: Probes, port: int) -> None:
    """During the start, the process is healthy but not ready."""
    assert (get(port, "/healthz")[0], get(port, "/readyz")[0]) == (200, 503)
    probes.ready = True
    assert get(port, "/readyz")[0] == 200


def test_a_stuck_event_loop_is_unhealthy(probes: Probes, port: int, clock: Clock) -> None:
    """The process is healthy again after the next heartbeat."""
    probes.ready = True
    clock.now += SILENCE_MAX_SECONDS
    assert (get(port, "/healthz")[0], get(port, "/readyz")[0]) == (503, 503)
    probes.beat()
    assert (get(port, "/healthz")[0], get(port, "/readyz")[0]) == (200, 200)


def test_only_the_probes_are_served(port: int) -> None:
    """A path other than those of the probes gives 404."""
    assert get(port, "/")[0] == 404
