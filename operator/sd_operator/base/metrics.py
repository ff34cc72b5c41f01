"""Prometheus metrics, in their own registry and served by their own thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, MetricsHandler
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sd_operator.base.httpd import Server

Values = dict[tuple[str, ...], int]
"""The values of a gauge, by the values of its labels."""

_LOAD_BUCKETS = (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600)


class Component(StrEnum):
    """The process that sdmodel_build_info comes from."""

    OPERATOR = "operator"
    GATEWAY = "gateway"


class PassResult(StrEnum):
    """The label `result` of sdmodel_reconcile_total."""

    OK = "ok"
    ERROR = "error"


class CheckOutcome(StrEnum):
    """The label `outcome` of sdmodel_checks_total."""

    COMPLETE = "complete"
    MISSING = "missing"
    EMPTY = "empty"
    FAILED = "failed"


@dataclass(frozen=True)
class ModelState:
    """The values of the gauges for one model."""

    namespace: str
    name: str
    phase: str
    reason: str
    artifact_bytes: int = 0
    shared_bytes: int = 0
    missing: bool = False
    """Whether files of the published version are missing."""


class _Models(Collector):
    """Counts the models when the metrics are scraped."""

    def __init__(self) -> None:
        self.states: dict[str, ModelState] = {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the models by phase and reason, each model, and the bytes of each namespace."""
        # The scrape runs in another thread: list() copies in one step.
        states = list(self.states.values())
        models: Values = defaultdict(int)
        info: Values = {}
        size: Values = defaultdict(int)
        shared: Values = defaultdict(int)
        missing: Values = defaultdict(int)
        for state in states:
            models[state.namespace, state.phase, state.reason] += 1
            info[state.namespace, state.name, state.phase, state.reason] = 1
            size[state.namespace,] += state.artifact_bytes
            shared[state.namespace,] += state.shared_bytes
            missing[state.namespace,] += state.missing
        labels = ["namespace", "phase", "reason"]
        yield _gauge("models", "Models by namespace, phase and reason.", labels, models)
        labels = ["namespace", "name", "phase", "reason"]
        yield _gauge("info", "1 for every model; its phase and reason are labels.", labels, info)
        text = "Bytes of a namespace's published models, shared files counted for each model."
        yield _gauge("artifact_size_bytes", text, ["namespace"], size)
        text = "Bytes of them that lie on a volume once, though more than one model has them."
        yield _gauge("artifact_shared_bytes", text, ["namespace"], shared)
        text = "Models whose published files are missing, as checks found."
        yield _gauge("artifacts_missing", text, ["namespace"], missing)


def _gauge(name: str, text: str, labels: list[str], values: Values) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"sdmodel_{name}", text, labels=labels)
    for label_values, value in values.items():
        gauge.add_metric(label_values, value)
    return gauge


class Metrics:
    """All metrics of one operator."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models = _Models()
        self.registry.register(self._models)
        self.reconciles = self._counter(
            "reconcile_total", "Passes over a model, by result: ok or error.", "result"
        )
        self.reconcile_seconds = Histogram(
            "sdmodel_reconcile_duration_seconds",
            "Time of a pass over a model, requests included.",
            registry=self.registry,
        )
        self.loads = self._counter(
            "loads_total",
            "Loads that ended, by outcome (loaded or failed) and reason of failure.",
            *("namespace", "model_type", "outcome", "reason"),
        )
        self.load_seconds = Histogram(
            "sdmodel_load_duration_seconds",
            "Time of a load, by stage: fetch, convert, or total (from the Job's start to its end).",
            ["model_type", "stage"],
            buckets=_LOAD_BUCKETS,
            registry=self.registry,
        )
        self.load_jobs = self._gauge("load_jobs_active", "Loader Jobs at work.")
        self.queue_length = self._gauge("queue_length", "Models that wait for their turn to load.")
        self.leader = self._gauge("leader", "1 where this operator is the one at work, else 0.")
        self.namespace_served = Gauge(
            "sdmodel_namespace_served",
            "1 for each listed namespace that is served, 0 for one that is gone or forbidden.",
            ["namespace"],
            registry=self.registry,
        )
        self.source_bytes = self._counter(
            "source_bytes_total", "Bytes of the sources of models that were loaded.", "namespace"
        )
        self.checks = self._counter(
            "checks_total",
            "Checks of published files, by outcome: complete, missing, empty (no models on the"
            " volume at all) or failed.",
            "outcome",
        )
        self.deliveries = self._counter(
            "webhook_deliveries_total", "Webhook calls by outcome.", "outcome"
        )
        self.delivery_seconds = Histogram(
            "sdmodel_webhook_delivery_duration_seconds",
            "Time of a webhook call, waiting for a free slot included.",
            registry=self.registry,
        )
        self._requests = api_requests("sdmodel_api_requests_total", self.registry)
        add_build_info(self.registry, Component.OPERATOR)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"sdmodel_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sdmodel_{name}", text, labels, registry=self.registry)

    def count_request(self, verb: str, resource: str, code: str) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, resource, code).inc()

    def show(self, uid: str, state: ModelState) -> None:
        """Set the gauges of a model."""
        self._models.states[uid] = state

    def forget(self, uid: str) -> None:
        """Remove a model from the gauges."""
        self._models.states.pop(uid, None)

    def serve(self, address: str, port: int) -> tuple[int, Callable[[], None]]:
        """Serve /metrics from a thread; return the port and a function that stops it."""
        return serve(self.registry, address, port)


def api_requests(name: str, registry: CollectorRegistry) -> Counter:
    """Return a counter of requests to the API server.

    Operator and gateway use different names, so that alerts can tell which of them lacks rights.
    """
    return Counter(
        name,
        "Requests to the API server except watches; the code error means no response.",
        ["verb", "resource", "code"],
        registry=registry,
    )


def add_build_info(registry: CollectorRegistry, component: Component) -> None:
    """Add the component and its version as a metric."""
    text = "1; component and version are labels."
    build = Gauge("sdmodel_build_info", text, ["component", "version"], registry=registry)
    build.labels(component, installed_version()).set(1)


def serve(registry: CollectorRegistry, address: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve a registry from a thread; return the port and a function that stops it."""
    return Server(address, port, MetricsHandler.factory(registry)).start("metrics")


def installed_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("sd-operator")
    except PackageNotFoundError:
        return "unknown"
