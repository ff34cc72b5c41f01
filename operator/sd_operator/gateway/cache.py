"""clear_cache: a sweep of the namespace's volume, one at a time."""

from __future__ import annotations

import time

from sd_api import names
from sd_operator.base.errors import AlreadyExistsError
from sd_operator.clients.kube import JOBS, Api
from sd_operator.gateway.settings import Settings
from sd_operator.rules import manifests


async def clear(api: Api, settings: Settings, namespace: str) -> None:
    """Start a sweep, unless one runs that the gateway or the chart's CronJob has started."""
    labels = f"{names.LABEL_NAME}={names.SWEEP_NAME}"
    for job in (await api.list(JOBS, namespace, labels)).items:
        conditions = (job.get("status") or {}).get("conditions") or ()
        ended = {one["type"] for one in conditions if one.get("status") == "True"}
        if not ended & {"Complete", "Failed"}:
            return
    # Of two callers at the same time one creates it.
    name = f"{names.SWEEP_NAME}-{int(time.time()) // 60}"
    manifest = manifests.build_sweep(namespace, name, settings.claim_name, settings.loader)
    try:
        await api.create(JOBS, namespace, manifest)
    except AlreadyExistsError:
        return
