"""Stops the Jobs of loads that are not wanted, and waits for their Pods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules.decision import DeleteJobs, Refresh
from sd_operator.rules.input import Input
from sd_operator.rules.step import Proceed, Report, Step


def stop_jobs(inp: Input, unwanted: list[JobView], report: Report) -> Step | None:
    """Return the step that deletes the unwanted Jobs, or waits for their Pods.

    Return None if all of them have stopped.
    """
    running = tuple(job for job in unwanted if job.state is JobState.RUNNING and not job.deleting)
    if running:
        return Proceed(report, job=DeleteJobs(running))
    job = inp.observed.load_job
    wanted = job.uid if job is not None and not job.deleting and job not in unwanted else None
    return wait_for_pods(
        inp, wanted, lambda stopping: replace(report, message=f"{report.message}: {stopping}")
    )


def wait_for_pods(inp: Input, wanted: str | None, report: Callable[[str], Report]) -> Step | None:
    """Return the step that waits until only Pods of the Job with the uid `wanted` can write.

    Return None if no other Pod can write.

    report: returns the report for a message that names a Pod.
    """
    writing = [pod for pod in inp.observed.pods if pod.may_write and pod.job_uid != wanted]
    if not writing:
        return None
    waiting = report(f"Pod {writing[0].name} is stopping")
    if not inp.observed.fresh:
        return Refresh(waiting.message)
    return Proceed(waiting, wake_after=inp.settings.poll_seconds)


def stop_all_jobs(inp: Input, report: Report) -> Step:
    """Return the step that stops every load Job of the model, or `report` if all have stopped."""
    job = inp.observed.load_job
    unwanted = [*inp.observed.unrecorded, *([job] if job is not None else [])]
    return stop_jobs(inp, unwanted, report) or Proceed(report)
