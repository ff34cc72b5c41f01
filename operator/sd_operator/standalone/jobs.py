"""Decides the Job controller's next step from a Job and its Pods. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sd_operator.standalone.errors import Json

MAX_BACKOFF_SECONDS = 600.0
_BEFORE = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}
"""The condition that a Job gets before each final condition."""


@dataclass(frozen=True)
class Verdict:
    """The condition that ends a Job."""

    condition: str
    reason: str
    message: str


@dataclass
class Plan:
    """The next step of a Job."""

    status: Json
    """The Job's new status."""
    create: bool = False
    """Whether to create a Pod."""
    delete: Sequence[Json] = ()
    """The Pods to delete."""
    expired: bool = False
    """Whether to delete the Job, because its ttlSecondsAfterFinished is over."""
    again: float | None = None
    """Seconds until a new plan is due even without a change; None if only a change needs one."""
    events: list[tuple[str, str]] = field(default_factory=list)
    """The Events to record: reasons and messages."""


def parse(text: str) -> datetime:
    """Parse a time that Kubernetes wrote."""
    return datetime.fromisoformat(text)


def show(time: datetime) -> str:
    """Format a time as Kubernetes does."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def true_condition(item: Json, kind: str) -> Json | None:
    """Return the condition of this type if its status is True."""
    conditions: Sequence[Json] = item.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


ENDED = ("Succeeded", "Failed")
"""The final phases of a Pod."""


def phase(pod: Json) -> str:
    """Return a Pod's phase."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def terminations(pod: Json) -> list[tuple[str, Json]]:
    """Return the name and the terminated state of each container that has ended."""
    status = pod.get("status", {})
    entries = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    ended = [(entry["name"], entry.get("state", {}).get("terminated")) for entry in entries]
    return [(name, state) for name, state in ended if state]


def failure_action(job: Json, pod: Json) -> tuple[str, str]:
    """Return the action of the podFailurePolicy for a failed Pod, and the reason in words.

    Without a matching rule the action is Count.
    """
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for index, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", ())):
        matching = f"matching {rule['action']} rule at index {index}"
        if codes := rule.get("onExitCodes"):
            for container, state in terminations(pod):
                code = state["exitCode"]
                selected = codes.get("containerName") in (None, container)
                if selected and code and (code in codes["values"]) == (codes["operator"] == "In"):
                    why = f"Container {container} for pod {name} failed with exit code {code}"
                    return rule["action"], f"{why} {matching}"
        for pattern in rule.get("onPodConditions", ()):
            if true_condition(pod, pattern["type"]):
                return rule["action"], f"Pod {name} has condition {pattern['type']} {matching}"
    return "Count", ""


def plan(job: Json, pods: Sequence[Json], now: datetime, backoff: float) -> Plan:
    """Return the next step of a Job with one completion, as batch/v1 specifies it.

    `backoff` is the delay in seconds before the second attempt.
    """
    pods = [
        pod for pod in pods if pod["metadata"].get("deletionTimestamp") is None or not _done(pod)
    ]
    active = [p for p in pods if not _done(p) and "deletionTimestamp" not in p["metadata"]]
    for kind in _BEFORE:
        if ended := true_condition(job, kind):
            return _after_end(job, ended, active, now)
    counted = [
        pod for pod in pods if phase(pod) == "Failed" and failure_action(job, pod)[0] != "Ignore"
    ]
    status = dict(job.get("status", {}))
    failures = max(len(counted), status.get("failed", 0))
    status |= {"failed": failures} if failures else {}
    verdict = _verdict(job, pods, failures, now)
    if verdict is not None:
        return _finish(status, verdict, active, [p for p in pods if not _done(p)], now)
    return _go_on(job, status, pods, active, counted, now, backoff)


def _done(pod: Json) -> bool:
    return phase(pod) in ENDED


def _after_end(job: Json, ended: Json, active: Sequence[Json], now: datetime) -> Plan:
    result = Plan(job["status"], delete=active)
    ttl = job["spec"].get("ttlSecondsAfterFinished")
    if ttl is not None:
        due = parse(ended["lastTransitionTime"]) + timedelta(seconds=ttl)
        result.expired = now >= due
        result.again = max(0.0, (due - now).total_seconds())
    return result


def _verdict(job: Json, pods: Sequence[Json], failures: int, now: datetime) -> Verdict | None:
    """Return the condition that ends the Job; None if the Job has not ended."""
    spec = job["spec"]
    if target := true_condition(job, "FailureTarget"):
        return Verdict("Failed", target["reason"], target["message"])
    if any(phase(pod) == "Succeeded" for pod in pods):
        text = "Reached expected number of succeeded pods"
        return Verdict("Complete", "CompletionsReached", text)
    for pod in pods:
        action, why = failure_action(job, pod) if phase(pod) == "Failed" else ("", "")
        if action == "FailJob":
            return Verdict("Failed", "PodFailurePolicy", why)
    if failures > spec["backoffLimit"]:
        text = "Job has reached the specified backoff limit"
        return Verdict("Failed", "BackoffLimitExceeded", text)
    if not spec.get("suspend") and _deadline(job, now) <= 0:
        text = "Job was active longer than specified deadline"
        return Verdict("Failed", "DeadlineExceeded", text)
    return None


def _deadline(job: Json, now: datetime) -> float:
    """Return the seconds until the Job's deadline; infinite if it has none."""
    seconds, start = (
        job["spec"].get("activeDeadlineSeconds"),
        job.get("status", {}).get("startTime"),
    )
    if seconds is None or start is None:
        return float("inf")
    return (parse(start) + timedelta(seconds=seconds) - now).total_seconds()


def _finish(
    status: Json, verdict: Verdict, active: Sequence[Json], live: Sequence[Json], now: datetime
) -> Plan:
    """Return the plan that ends the Job.

    A failed Job gets its last condition only when none of its Pods is alive.
    """
    _set(status, _BEFORE[verdict.condition], verdict, now)
    result = Plan(status, delete=active)
    for transient in ("active", "ready", "terminating"):
        status.pop(transient, None)
    if live and verdict.condition == "Failed":
        status |= {"terminating": len(live)}
        return result
    _set(status, verdict.condition, verdict, now)
    if verdict.condition == "Complete":
        status |= {"succeeded": 1, "completionTime": show(now)}
    result.events.append(
        ("Completed", "Job completed")
        if verdict.condition == "Complete"
        else (verdict.reason, verdict.message)
    )
    return result


def _go_on(
    job: Json,
    status: Json,
    pods: Sequence[Json],
    active: Sequence[Json],
    counted: Sequence[Json],
    now: datetime,
    backoff: float,
) -> Plan:
    """Return the plan that suspends or resumes a Job, or starts its next Pod."""
    result = Plan(status)
    for transient in ("active", "ready", "terminating"):
        status.pop(transient, None)
    suspended = true_condition(job, "Suspended") is not None
    if job["spec"].get("suspend"):
        if not suspended:
            _set(status, "Suspended", Verdict("", "JobSuspended", "Job suspended"), now)
            result.events.append(("Suspended", "Job suspended"))
        status.pop("startTime", None)
        result.delete = active
        return result
    if suspended:
        _set(status, "Suspended", Verdict("", "JobResumed", "Job resumed"), now, "False")
        result.events.append(("Resumed", "Job resumed"))
    status.setdefault("startTime", show(now))
    if active:
        status |= {"active": len(active), "ready": sum(_is_ready(pod) for pod in active)}
    live = [pod for pod in pods if not _done(pod)]
    waits_for_end = job["spec"].get("podReplacementPolicy") == "Failed"
    left = _deadline(job | {"status": status}, now)
    if not active and not (live and waits_for_end):
        wait = _backoff(counted, now, backoff)
        result.create = wait <= 0
        left = min(left, wait) if wait > 0 else left
    result.again = left if left < float("inf") else None
    return result


def _backoff(counted: Sequence[Json], now: datetime, base: float) -> float:
    """Return the seconds until the next attempt, 0 or less if it is due.

    The delay doubles with each failure, up to MAX_BACKOFF_SECONDS.
    """
    ends = [parse(s["finishedAt"]) for pod in counted for _, s in terminations(pod)]
    if not ends:
        return 0.0
    delay = min(base * 2 ** (len(counted) - 1), MAX_BACKOFF_SECONDS)
    return (max(ends) + timedelta(seconds=delay) - now).total_seconds()


def _is_ready(pod: Json) -> bool:
    return true_condition(pod, "Ready") is not None


def _set(status: Json, kind: str, why: Verdict, now: datetime, value: str = "True") -> None:
    others = [c for c in status.get("conditions", ()) if c["type"] != kind]
    if any(c["type"] == kind and c["status"] == value for c in status.get("conditions", ())):
        return
    entry = {"type": kind, "status": value, "reason": why.reason, "message": why.message}
    entry |= {"lastProbeTime": show(now), "lastTransitionTime": show(now)}
    status["conditions"] = [*others, entry]
