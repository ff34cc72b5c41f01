"""The operator's decision in one line, for tables of tests."""

from __future__ import annotations

from typing import Any

from sd_operator.base.settings import Settings
from sd_operator.resources.model import Model
from sd_operator.resources.observed import ContainerView, JobState, JobView, Observed
from sd_operator.rules.decide import plan
from sd_operator.rules.decision import Plan
from tests.support.rules.observed import NOW, claim, model, pod

OTHER = model(revision="fp16").wanted
HOOK = "https://hooks.example.com/models"
COMPLETE, FAILED = JobState.COMPLETE, JobState.FAILED


def observed(*jobs: JobView, **fields: Any) -> Observed:
    """What is seen: these Jobs, and a claim."""
    return Observed(**({"jobs": jobs, "claim": claim()} | fields))


def with_pod(of: JobView, *containers: ContainerView, **fields: Any) -> Observed:
    """What is seen: a Job with one Pod of these containers."""
    known = {key: fields.pop(key) for key in list(fields) if key in Observed.__annotations__}
    return observed(of, pods=(pod(of, *containers, **fields),), **known)


def decide(resource: Model, seen: Observed) -> Plan:
    """The plan, by the default settings."""
    return plan(resource, seen, Settings(), NOW)


def told(decided: Plan) -> str:
    """A plan in one line: rule | what is done | how the model stands | what is told to people."""
    done = [f"delete {one.role} {one.attempt}" for one in decided.delete]
    done += ["look"] * decided.look
    done += [f"finalizer {decided.finalizer}"] if decided.finalizer else []
    if decided.create is not None:
        role = "load" if hasattr(decided.create.request, "url") else "remove"
        done.append(f"create {role} {decided.create.attempt}")
    status = decided.status
    stands = [str(status.phase)] if status.phase else []
    stands += [
        f"{one.type}={one.reason}" if one.status == "True" else f"not {one.type}={one.reason}"
        for one in status.conditions
    ]
    events = [one.reason.value for one in decided.events]
    parts = [decided.rule, ", ".join(done), ", ".join(stands), ", ".join(events)]
    return " | ".join(part for part in parts if part)
