"""Prometheus metrics, in their own registry and served by their own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_LOAD_BUCKETS = (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600)


@dataclass(frozen=True)
class ModelState:
    """The values of the gauges for one model."""

    namespace: str
    name: str
    phase: str
    reason: str
    artifact_bytes: int = 0
    shared_bytes: int = 0


class _Models(Collector):
    """Counts the models when the metrics are scraped."""

    def __init__(self) -> None:
        self.states: dict[str, ModelState] = {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield one sample for each phase and reason, and one for each model."""
        # The scrape runs in another thread: list() copies in one step.
        states = list(self.states.values())
        counts: dict[tuple[str, str], int] = {}
        for state in states:
            counts[state.phase, state.reason] = counts.get((state.phase, state.reason), 0) + 1
        models = GaugeMetricFamily(
            "sdmodel_models", "Models by phase and reason.", labels=["phase", "reason"]
        )
        for labels, count in counts.items():
            models.add_metric(labels, count)
        labels_of_info = ["namespace", "name", "phase", "reason"]
        text = "1 for every model; its phase and reason are labels."
        info = GaugeMetricFamily("sdmodel_info", text, labels=labels_of_info)
        for state in states:
            info.add_metric([state.namespace, state.name, state.phase, state.reason], 1)
        yield models
        yield info
        text = "Bytes of all published models, shared files counted for each."
        yield _sum("artifact_size_bytes", text, (one.artifact_bytes for one in states))
        text = "Bytes of them that lie on a volume once, though more than one model has them."
        yield _sum("artifact_shared_bytes", text, (one.shared_bytes for one in states))


def _sum(name: str, text: str, values: Iterable[int]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sdmodel_{name}", text, value=sum(values))


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
            *("model_type", "outcome", "reason"),
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
        self.source_bytes = self._counter(
            "source_bytes_total", "Bytes of the sources of models that were loaded."
        )
        self.deliveries = self._counter(
            "webhook_deliveries_total", "Webhook calls by outcome.", "outcome"
        )
        self.delivery_seconds = Histogram(
            "sdmodel_webhook_delivery_duration_seconds",
            "Time of a webhook call, waiting for a free slot included.",
            registry=self.registry,
        )
        self._requests = api_requests(self.registry)
        add_build_info(self.registry)

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


def api_requests(registry: CollectorRegistry) -> Counter:
    """Return a counter of requests to the API server, for operator and gateway."""
    return Counter(
        "sdmodel_api_requests_total",
        "Requests to the API server except watches; the code error means no response.",
        ["verb", "resource", "code"],
        registry=registry,
    )


def add_build_info(registry: CollectorRegistry) -> None:
    """Add the version as a metric."""
    text = "1; the version is a label."
    build = Gauge("sdmodel_build_info", text, ["version"], registry=registry)
    build.labels(installed_version()).set(1)


def serve(registry: CollectorRegistry, address: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve a registry from a thread; return the port and a function that stops it."""
    server, thread = start_http_server(port, address, registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), stop


def installed_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("sd-operator")
    except PackageNotFoundError:
        return "unknown"
