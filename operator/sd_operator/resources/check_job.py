"""The result of a check's Job, read from its Pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sd_api import names
from sd_api.check import CheckResult
from sd_api.reasons import ExitCode
from sd_api.wire import LoadResult
from sd_operator.resources.observed import JobState, JobView, controller_uid


@dataclass(frozen=True)
class CheckEnd:
    """How a check ended."""

    result: CheckResult | None = None
    """The loader's result; None if the check failed, or if the result cannot be trusted."""
    why: str = ""
    """Why there is no result. The text may come from the Pod, so it is untrusted."""


def check_end(job: JobView, pods: Sequence[Mapping[str, Any]], count: int) -> CheckEnd:
    """Read how a check's Job ended from the Job's Pod; count: how many versions the Job checks.

    The Job makes one Pod. If more Pods name it as their controller, somebody imitates its Pod.
    """
    own = [pod for pod in pods if controller_uid(pod["metadata"]) == job.uid]
    if len(own) > 1:
        return CheckEnd(why=f"{len(own)} Pods claim to be the one of Job {job.name}")
    status = (own[0].get("status") or {}) if own else {}
    ended = _terminated(status)
    text = str(ended.get("message") or "")
    result = CheckResult.decode(text)
    if result is not None and job.state is JobState.COMPLETE:
        is_done = status.get("phase") == "Succeeded" and ended.get("exitCode") == ExitCode.DONE
        if is_done and all(place < count for place in (*result.missing, *result.unreadable)):
            return CheckEnd(result)
    failed = LoadResult.decode(text)
    if failed is not None and failed.message:
        return CheckEnd(why=failed.message)
    # The message of a Complete Job says only that it succeeded.
    why = job.detail if job.state is JobState.FAILED else ""
    return CheckEnd(why=why or f"Job {job.name} has no valid result")


def _terminated(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the container of a check ended; empty if it did not run or has not ended."""
    for container in status.get("containerStatuses") or ():
        if container.get("name") == names.CONTAINER_CHECK:
            return (container.get("state") or {}).get("terminated") or {}
    return {}
