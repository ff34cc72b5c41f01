"""Computes the gauges of a model, and counts its loads."""

from __future__ import annotations

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


def count(metrics: Metrics, model: Model, ended: LoadOutcome) -> None:
    """Count a load that ended."""
    model_type = model.model_type.value if model.model_type else ""
    metrics.loads.labels(model.namespace, model_type, ended.outcome, ended.reason).inc()
    for stage, seconds in ended.stages:
        metrics.load_seconds.labels(model_type, stage).observe(seconds)
    metrics.source_bytes.labels(model.namespace).inc(ended.source_bytes)
