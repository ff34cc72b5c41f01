"""Starts a sweep of the namespace's volume, for clear_cache."""

from __future__ import annotations

from sd_api import names
from sd_operator.base.errors import AlreadyExistsError
from sd_operator.clients.kube import JOBS
from sd_operator.gateway.context import Context
from sd_operator.rules import manifests


async def clear(context: Context, namespace: str) -> None:
    """Start a sweep, unless one is running, be it the gateway's or that of the chart's CronJob."""
    labels = f"{names.LABEL_NAME}={names.SWEEP_NAME}"
    for job in (await context.api.list(JOBS, namespace, labels)).items:
        conditions = (job.get("status") or {}).get("conditions") or ()
        true = {condition["type"] for condition in conditions if condition.get("status") == "True"}
        if not true & {"Complete", "Failed"}:
            return
    # Two callers in the same minute use the same name, so that only one of them creates the Job.
    name = f"{names.SWEEP_NAME}-{int(context.clock.now().timestamp()) // 60}"
    settings = context.settings
    manifest = manifests.build_sweep(namespace, name, settings.claim_name, settings.loader)
    try:
        await context.api.create(JOBS, namespace, manifest)
    except AlreadyExistsError:
        return
