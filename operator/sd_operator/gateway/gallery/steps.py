"""The steps of a running load, and commands of kubectl to watch the load. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sd_api.status import Phase
from sd_api.wire import Stage
from sd_operator.gateway.gallery.words import ago, in_words
from sd_operator.resources.model import Model

_STEPS = ("Queue", "Start", "Download", "Convert", "Verify", "Publish")
_BY_PHASE = {
    Phase.QUEUED: "Queue",
    Phase.PENDING: "Start",
    Phase.DOWNLOADING: "Download",
    Phase.CONVERTING: "Convert",
    Phase.VERIFYING: "Verify",
}


@dataclass(frozen=True)
class Step:
    """One step of a load."""

    title: str
    state: str
    """done, current or next."""


@dataclass(frozen=True)
class Run:
    """A load that is under way."""

    steps: tuple[Step, ...]
    since: str
    """How long ago the load started; empty if it has not started."""
    attempt: int
    """The number of the load's Job, from 1."""
    failure: str
    """Why the newest failed Pod failed; empty if none failed."""
    commands: str
    """Commands of kubectl to watch the load."""


def run(model: Model, now: datetime) -> Run | None:
    """Return the load that is under way. None if there is none."""
    status = model.status
    phase = status.phase or Phase.PENDING
    suspended = model.spec is not None and model.spec.suspend
    if phase not in _BY_PHASE or suspended or model.deleted_at is not None:
        return None
    current = _BY_PHASE[phase]
    if status.progress is not None and status.progress.stage == Stage.PUBLISHING:
        current = "Publish"
    position = _STEPS.index(current)
    job, failure = status.job, status.last_failure
    return Run(
        steps=tuple(
            Step(title, "done" if index < position else "next" if index > position else "current")
            for index, title in enumerate(_STEPS)
        ),
        since=ago(status.start_time, now) if position > _STEPS.index("Queue") else "",
        attempt=job.attempt + 1 if job is not None else 1,
        failure=in_words(failure.message or failure.reason) if failure is not None else "",
        commands=_commands(model),
    )


def _commands(model: Model) -> str:
    kubectl = f"kubectl --namespace {model.namespace}"
    lines = [f"{kubectl} get stablediffusionmodel {model.name} --watch"]
    if model.status.job is not None:
        lines.append(f"{kubectl} logs job/{model.status.job.name} --all-containers --follow")
    return "\n".join(lines) + "\n"
