"""Rows for the tables of the operator's rules: an observation and the expected decision.

For example:

    CASES = [Case(id="new model", model=model(), observed=observed(), rule="load_is_due", …)]

    @pytest.mark.parametrize("case", CASES, ids=by_id)
    def test_…(case: Case) -> None:
        case.check()
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sd_api import names
from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.status import ConditionType, Status
from sd_operator.base.settings import Settings
from sd_operator.resources.model import Model
from sd_operator.resources.observed import ContainerView, JobState, JobView, Observed
from sd_operator.rules import conditions
from sd_operator.rules.decide import decide
from sd_operator.rules.decision import (
    Act,
    AddFinalizer,
    CreateJob,
    Decided,
    Decision,
    DeleteJobs,
    Enqueue,
    Refresh,
    Release,
    Wait,
)
from sd_operator.rules.input import Input
from tests.support.rules.observed import NOW, claim, model, pod

OTHER = model(revision="fp16").wanted
HOOK = "https://hooks.example.com/models"
COMPLETE, FAILED = JobState.COMPLETE, JobState.FAILED


def observed(*jobs: JobView, **fields: Any) -> Observed:
    """Return an observation of these Jobs, one of each role at most, and of a PVC."""
    roles = {"load_job": names.ROLE_LOAD, "cleanup_job": names.ROLE_REMOVE}
    own = {field: job for job in jobs for field, role in roles.items() if job.role == role}
    assert len(own) == len(jobs), "a model has one Job of each role"
    return Observed(**({"claim": claim()} | own | fields))


def with_pod(of: JobView, *containers: ContainerView, **fields: Any) -> Observed:
    """Return an observation of a Job with one Pod that has these containers."""
    known = {key: fields.pop(key) for key in list(fields) if key in Observed.__annotations__}
    return observed(of, pods=(pod(of, *containers, **fields),), **known)


def decided(resource: Model, seen: Observed, settings: Settings | None = None) -> Decided:
    """Return what the operator decides about the model; its settings are the defaults if None."""
    return decide(Input(resource, seen, settings or Settings(), NOW))


def act(resource: Model, seen: Observed, settings: Settings | None = None) -> Act:
    """Return the operator's decision about the model, which must be to act."""
    decision = decided(resource, seen, settings).decision
    assert isinstance(decision, Act), decision
    return decision


def with_remedy(cause: str, reason: Reason, note: str = "") -> str:
    """Return the message of a failure, which ends with its remedy."""
    return f"{cause}. {reason.remedy_for('JOB')} {note}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row: the facts, the rule that decides, and everything that users see of the decision."""

    id: str
    model: Model
    observed: Observed
    rule: str
    does: str = ""
    """What is done, such as `create load 0`; empty if only the status is written."""
    phase: str = ""
    ready: str = ""
    """The reason of Ready; `not` before it if the condition is False."""
    reconciling: str = ""
    """The reason of Reconciling; empty if the condition is absent."""
    stalled: str = ""
    """The reason of Stalled; empty if the condition is absent."""
    events: tuple[str, ...] = ()
    """The reasons of the Events."""
    message: str
    """The message, with JOB for a Job's name and POD for a Pod's."""

    def check(self) -> None:
        """Decide and compare every field of the row."""
        result = decided(self.model, self.observed)
        decision = result.decision
        assert (result.rule, _does(decision)) == (self.rule, self.does)
        assert _named(decision.why) == self.message
        events = decision.events if isinstance(decision, Act | Release) else ()
        assert tuple(event.reason.value for event in events) == self.events
        status = decision.status if isinstance(decision, Act) else None
        phase = str(status.phase) if status else ""
        seen = tuple(_reason(status, kind) for kind in _KINDS)
        assert (phase, *seen) == (self.phase, self.ready, self.reconciling, self.stalled)
        for condition in status.conditions if status else ():
            kept = condition.type == "Stalled" and condition in self.model.status.conditions
            served = condition.type == "Ready" and condition.status == "True"
            assert kept or served or _named(condition.message) == self.message


_KINDS = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)


def by_id(case: Case) -> str:
    """Return the id of a row."""
    return case.id


def _reason(status: Status | None, kind: ConditionType) -> str:
    condition = conditions.find(status.conditions, kind) if status else None
    if condition is None:
        return ""
    return condition.reason if condition.status == "True" else f"not {condition.reason}"


def _does(decision: Decision) -> str:
    match decision:
        case Refresh():
            return "refresh"
        case Wait():
            return "wait"
        case AddFinalizer():
            return "add finalizer"
        case Release():
            return "release"
        case Act(job=CreateJob(job)):
            role = "load" if isinstance(job.request, LoadRequest) else "remove"
            return f"create {role} {job.attempt}"
        case Act(job=DeleteJobs(jobs)):
            return ", ".join(f"delete {job.role} {job.attempt}" for job in jobs)
        case Act(job=Enqueue()):
            return "enqueue"
        case Act():
            return ""


def _named(message: str) -> str:
    text = re.sub(r"sketch-[0-9a-f]{10}-abcde", "POD", message)
    return re.sub(r"sketch-[0-9a-f]{10}", "JOB", text)
