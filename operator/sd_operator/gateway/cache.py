"""Requests a sweep of the namespace's volume, for clear_cache."""

from __future__ import annotations

import logging

from sd_api import names
from sd_operator.base.errors import ConflictError, NotFoundError
from sd_operator.clients.kube import LEASES
from sd_operator.gateway.context import Context
from sd_operator.resources.sweep import SweepLease

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a request is tried when other callers request a sweep at the same time."""


async def clear(context: Context, namespace: str) -> None:
    """Request a sweep in the namespace's Lease, unless the Lease already has an open request."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            lease = SweepLease(await context.api.get(LEASES, namespace, names.SWEEP_LEASE))
            if not lease.is_open:
                request = lease.request(context.clock.now())
                await context.api.update(LEASES, namespace, names.SWEEP_LEASE, request)
        except NotFoundError:
            # The operator creates the Lease with the first model, so there is nothing to remove.
            log.warning("namespace %s has no Lease %s: not swept", namespace, names.SWEEP_LEASE)
        except ConflictError:
            if attempt == ATTEMPTS:
                raise
            continue
        return
