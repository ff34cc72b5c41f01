"""Stops the Jobs of loads that are not wanted."""

from __future__ import annotations

from dataclasses import replace

from sd_operator.resources.observed import JobState, JobView
from sd_operator.rules.decision import DeleteJobs, Refresh
from sd_operator.rules.input import Input
from sd_operator.rules.step import Proceed, Report, Step


def stop_jobs(inp: Input, unwanted: list[JobView], report: Report) -> Step | None:
    """Delete the Jobs that have not ended, and wait until none of their Pods can write."""
    running = tuple(job for job in unwanted if job.state is JobState.RUNNING and not job.deleting)
    if running:
        return Proceed(report, job=DeleteJobs(running))
    job = inp.observed.load_job
    wanted = job.uid if job is not None and not job.deleting and job not in unwanted else None
    writing = [pod for pod in inp.observed.pods if pod.may_write and pod.job_uid != wanted]
    if not writing:
        return None
    message = f"{report.message}: Pod {writing[0].name} is stopping"
    if not inp.observed.fresh:
        return Refresh(message)
    return Proceed(replace(report, message=message), wake_after=inp.settings.poll_seconds)


def stop_all_jobs(inp: Input, report: Report) -> Step:
    """Stop every Job of the model, then report."""
    job = inp.observed.load_job
    unwanted = [*inp.observed.unrecorded, *([job] if job is not None else [])]
    return stop_jobs(inp, unwanted, report) or Proceed(report)
