"""Computes the gauges of a model, and counts its loads."""

from __future__ import annotations

from sd_api.choices import UNKNOWN_TYPE
from sd_api.status import Status
from sd_operator.base.metrics import Metrics, ModelState
from sd_operator.resources.model import Model
from sd_operator.rules.decision import LoadOutcome


def state(model: Model, status: Status) -> ModelState:
    """Return the values of a model's gauges."""
    artifact = status.artifact
    return ModelState(
        namespace=model.namespace,
        name=model.name,
        phase=status.phase.value if status.phase else "",
        reason=status.reason or "",
        artifact_bytes=artifact.size_bytes if artifact else 0,
        shared_bytes=artifact.shared_bytes if artifact else 0,
        missing=artifact is not None and artifact.missing_time is not None,
    )


def count(metrics: Metrics, namespace: str, status: Status, ended: LoadOutcome) -> None:
    """Count a load that ended with this status."""
    model_type = status.model_type or UNKNOWN_TYPE
    metrics.loads.labels(namespace, model_type, ended.outcome, ended.reason).inc()
    for stage, seconds in ended.stages:
        metrics.load_seconds.labels(model_type, stage).observe(seconds)
    metrics.source_bytes.labels(namespace).inc(ended.source_bytes)
