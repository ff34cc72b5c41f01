"""Deletes Jobs."""

from __future__ import annotations

import logging

from sd_operator.base.errors import ApiError, ConflictError, NotFoundError
from sd_operator.clients.kube import JOBS, Api

log = logging.getLogger(__name__)


async def delete(api: Api, namespace: str, name: str, uid: str) -> None:
    """Delete this Job, not a later one of the same name; its Pods are deleted with it."""
    try:
        await api.delete(JOBS, namespace, name, uid)
    except (NotFoundError, ConflictError):
        log.debug("Job %s/%s is gone already", namespace, name)


async def discard(api: Api, namespace: str, name: str, uid: str) -> None:
    """Delete a Job that nobody waits for. If this fails, its TTL or its deadline ends it later."""
    try:
        await delete(api, namespace, name, uid)
    except ApiError as refused:
        log.warning(
            "cannot delete Job %s/%s now; it stays until its TTL: %s", namespace, name, refused
        )
