"""Models, Jobs, Pods and PVCs for tests of the operator's rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sd_api import names
from sd_api.reasons import Reason
from sd_api.wire import Artifact, LoadResult, Source
from sd_operator.base import times
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model
from sd_operator.resources.observed import ContainerView, JobState, JobView, PodView

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
CLAIM_UID = "99999999-2222-3333-4444-555555555555"
URL = "https://example.com/model.safetensors"


def body(
    status: dict[str, Any] | None = None,
    *,
    name: str = "sketch",
    finalizer: bool = True,
    deleted_ago: float | None = None,
    annotations: dict[str, str] | None = None,
    generation: int = 1,
    **spec: Any,
) -> dict[str, Any]:
    """Return a resource in the namespace `art`; keywords are fields of its spec."""
    metadata: dict[str, Any] = {
        "namespace": "art",
        "name": name,
        "uid": UID,
        "generation": generation,
        "resourceVersion": "7",
        "finalizers": ["example.com/other"] + [names.FINALIZER] * finalizer,
        "annotations": annotations or {},
    }
    if deleted_ago is not None:
        metadata["deletionTimestamp"] = times.stamp(NOW - timedelta(seconds=deleted_ago))
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": metadata,
        "spec": {"url": URL, **spec},
        "status": status or {},
    }


def model(status: dict[str, Any] | None = None, **options: Any) -> Model:
    """Return the resource of `body` as a Model."""
    return Model.from_body(body(status, **options))


WANTED = model().wanted


def job_uid(attempt: int = 0, load_hash: str = WANTED, role: str = names.ROLE_LOAD) -> str:
    """Return the uid of the Job that `job` returns for these arguments."""
    return f"{role}-{load_hash if role == names.ROLE_LOAD else 0}-{attempt}"


def job_status(
    attempt: int = 0, load_hash: str = WANTED, role: str = names.ROLE_LOAD
) -> dict[str, Any]:
    """Return the record in the status of the Job that `job` returns for these arguments."""
    what = load_hash if role == names.ROLE_LOAD else role
    name = names.job_name("sketch", UID, what, attempt)
    return {"name": name, "uid": job_uid(attempt, load_hash, role), "attempt": attempt}


def without_uid(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a Job without its uid, as earlier versions of the operator wrote it."""
    return {key: value for key, value in record.items() if key != "uid"}


def job(
    state: JobState = JobState.RUNNING,
    *,
    attempt: int = 0,
    role: str = names.ROLE_LOAD,
    load_hash: str = WANTED,
    ended_ago: float = 1,
    **fields: Any,
) -> JobView:
    """Return a Job of the model."""
    ended = None if state is JobState.RUNNING else NOW - timedelta(seconds=ended_ago)
    hashed = load_hash if role == names.ROLE_LOAD else names.ROLE_REMOVE
    defaults: dict[str, Any] = {
        "name": names.job_name("sketch", UID, hashed, attempt),
        "namespace": "art",
        "uid": job_uid(attempt, load_hash, role),
        "owner_uid": UID if role == names.ROLE_LOAD else "",
        "claim_uid": CLAIM_UID if role == names.ROLE_LOAD else "",
        "model_uid": UID,
        "resource_version": "1",
        "created": NOW - timedelta(seconds=60),
    }
    return JobView(
        **(defaults | fields),
        role=role,
        load_hash=load_hash if role == names.ROLE_LOAD else "",
        attempt=attempt,
        state=state,
        ended=ended,
    )


def pod(of: JobView, *containers: ContainerView, age: float = 50, **fields: Any) -> PodView:
    """Return a Pod of a Job."""
    return PodView(
        name=f"{of.name}-abcde",
        namespace="art",
        uid=f"pod-of-{of.uid}-{age}",
        job_uid=of.uid,
        model_uid=UID,
        resource_version="1",
        created=NOW - timedelta(seconds=age),
        containers=containers,
        **fields,
    )


def claim(**fields: Any) -> ClaimView:
    """Return the PVC `models`."""
    defaults = {"name": "models", "namespace": "art", "uid": CLAIM_UID, "resource_version": "1"}
    return ClaimView(**(defaults | fields))


ARTIFACT = Artifact(
    model_type="custom_ckpt",
    digest="blake3:" + "ab" * 32,
    size_bytes=2_100_000_000,
    files=13,
    base_model="sd-1",
    pipeline_class="StableDiffusionPipeline",
    precision="fp16",
    prediction_type="epsilon",
)
LOADED = LoadResult(
    outcome="loaded",
    artifact=ARTIFACT,
    source=Source(sha256="cd" * 32, size_bytes=2_000_000_000, format="safetensors"),
)


def ended(name: str, message: str, *, reason: str = "", code: int = 0) -> ContainerView:
    """Return a container that ended with this termination message, as the operator reads it."""
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    body = {
        "metadata": {"name": "sketch-1-x", "namespace": "art", "uid": "p1"},
        "status": {"containerStatuses": [{"name": name, "state": state}]},
    }
    return PodView.from_body(body).containers[0]


def answered(name: str, answer: LoadResult) -> ContainerView:
    """Return a container that ended with this result."""
    code = int(answer.reason.exit_code) if answer.reason else 0
    return ended(name, answer.encode(), code=code)


def failed(reason: Reason, message: str = "what and where") -> LoadResult:
    """Return the loader's result of a failed load."""
    return LoadResult(outcome="failed", reason=reason, message=message)


def running(name: str) -> ContainerView:
    """Return a running container."""
    return ContainerView(name, "running")


def published(load_hash: str = WANTED, **artifact: Any) -> dict[str, Any]:
    """Return the status of a model that is Ready."""
    return {
        "observedGeneration": 1,
        "loadHash": load_hash,
        "modelId": "sketch",
        "modelType": "custom_ckpt",
        "phase": "Ready",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Loaded",
                "message": "sketch is published on claim models",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "artifact": {
            **ARTIFACT.model_dump(mode="json", by_alias=True, exclude_none=True),
            "path": "sketch",
            "immutablePath": names.immutable_path(UID, load_hash),
            "claimName": "models",
            "claimUID": CLAIM_UID,
            "size": "2.1 GB",
            "lastUpdateTime": "2026-01-01T00:00:00Z",
            **artifact,
        },
        "job": job_status(0, load_hash),
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T00:01:00Z",
    }


def loading(attempt: int = 0, load_hash: str = WANTED, started_ago: float = 60) -> dict[str, Any]:
    """Return the status of a model with a started Job."""
    return {
        "observedGeneration": 1,
        "loadHash": load_hash,
        "phase": "Pending",
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Pending",
                "message": "",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "job": job_status(attempt, load_hash),
        "startTime": times.stamp(NOW - timedelta(seconds=started_ago)),
    }


def stalled(
    reason: Reason, *, attempt: int = 0, ended_ago: float = 10, base: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the status of a model after a failed load; `base` is its status before the load."""
    status = base or loading(attempt)
    condition = {
        "type": "Stalled",
        "status": "True",
        "reason": reason.value,
        "message": f"it failed. {reason.remedy}",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    return status | {
        "loadHash": WANTED,
        "job": job_status(attempt),
        "conditions": [*status["conditions"], condition],
        "completionTime": times.stamp(NOW - timedelta(seconds=ended_ago)),
        "reason": reason.value,
        "phase": "Failed",
    }
