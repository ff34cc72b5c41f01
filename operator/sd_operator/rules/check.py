"""Decides when the published versions on a PVC are checked, and evaluates the results. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sd_api.check import VERSIONS_MAX, CheckedVersion, CheckRequest, CheckResult
from sd_api.names import STORE_DIR
from sd_api.reasons import EventReason, Reason
from sd_api.status import ConditionType, Status, StatusArtifact
from sd_operator.resources.check_finding import CheckFinding
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.model import Model
from sd_operator.rules import conditions
from sd_operator.rules.decision import EventPlan, EventType
from sd_operator.rules.diagnose import NOT_STARTED

LOADING_LOOK_SECONDS = 60.0
"""How soon a PVC on which a load runs is considered again, unless checks are more frequent."""


@dataclass(frozen=True)
class Served:
    """A model on a PVC, with the fields that the checks need."""

    uid: str
    model_id: str
    artifact: StatusArtifact | None
    """The published version; None if there is none, or if the model is being deleted."""
    loading: bool
    """Whether a load runs or is about to."""

    @classmethod
    def of(cls, model: Model, status: Status) -> Served:
        """Return the fields that the checks need, from a model and the status of its last pass."""
        stalled = conditions.find(status.conditions, ConditionType.STALLED)
        cannot_start = stalled is not None and Reason.parse(stalled.reason) in NOT_STARTED
        reconciling = conditions.find(status.conditions, ConditionType.RECONCILING) is not None
        return cls(
            uid=model.uid,
            model_id=model.model_id,
            artifact=status.artifact if model.deleted_at is None else None,
            # A load that waits for a node for days must not keep the others from being checked.
            loading=reconciling and not cannot_start,
        )


@dataclass(frozen=True)
class Claim:
    """A PVC, its models, and the state of its checks. A run checks all models, in batches."""

    view: ClaimView | None
    """The PVC; None if it does not exist."""
    models: tuple[Served, ...]
    due_in: float
    """Seconds until the next run is due; 0 or less if it is due."""
    rest: tuple[Served, ...] = ()
    """The models of the run under way that are not checked yet."""


@dataclass(frozen=True)
class Pause:
    """Start no check for this time."""

    seconds: float


@dataclass(frozen=True)
class Start:
    """Start a Job that checks a batch of models."""

    claim: ClaimView
    batch: tuple[Served, ...]
    rest: tuple[Served, ...]
    """The models of this run that are checked afterwards."""

    def request(self) -> CheckRequest:
        """Return the request of the Job."""
        return CheckRequest(
            versions=tuple(
                CheckedVersion(uid=one.uid, load_hash=one.artifact.load_hash, model_id=one.model_id)
                for one in self.batch
                if one.artifact is not None
            )
        )


Step: TypeAlias = Pause | Start


def plan(claim: Claim, interval: float) -> Step:
    """Return the batch to check on a PVC now, or how long to wait.

    interval: the seconds between two runs.
    """
    view = claim.view
    if view is None or view.deleting or view.lost:
        return Pause(interval)
    if not claim.rest and claim.due_in > 0:
        return Pause(claim.due_in)
    if any(model.loading for model in claim.models):
        # If only one node at a time can mount the volume, a check could keep the load waiting.
        return Pause(min(LOADING_LOOK_SECONDS, interval))
    run = claim.rest or _published(claim.models, view)
    if not run:
        return Pause(interval)
    return Start(view, run[:VERSIONS_MAX], run[VERSIONS_MAX:])


def _published(models: Collection[Served], view: ClaimView) -> tuple[Served, ...]:
    """Return the models with a version on this very PVC, in an order that does not change."""
    on_claim = (
        model
        for model in models
        if model.artifact is not None and model.artifact.claim_uid == view.uid
    )
    return tuple(sorted(on_claim, key=lambda model: model.uid))


def findings(
    before: Mapping[str, CheckFinding], batch: Sequence[Served], result: CheckResult | None
) -> dict[str, CheckFinding]:
    """Return the findings about the models of a batch after its check, by uid.

    before: the findings before the check. result: None if the check failed. The finding of a model
    whose files could not be compared is left out, so its count of checks begins again.
    """
    if result is None or result.outcome == "empty":
        return {}
    known = {}
    for position, model in enumerate(batch):
        if model.artifact is None or position in result.unreadable:
            continue
        missed = 0
        if position in result.missing:
            last = before.get(model.uid)
            again = last is not None and last.is_about(model.artifact)
            missed = last.missed + 1 if last is not None and again else 1
        known[model.uid] = CheckFinding(model.artifact, missed)
    return known


def empty_event(models: int) -> EventPlan:
    """Return the Event about a PVC whose volume has no versions at all."""
    text = (
        f"the volume has no folder {STORE_DIR}, so the files of {models} models cannot be checked;"
        " their status stays as it is. Check that this is the volume that they were published on"
    )
    return EventPlan(EventType.WARNING, EventReason.STORE_MISSING, text)
