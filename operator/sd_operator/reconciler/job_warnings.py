"""Finds out from Events why a Job has no Pods, or why its Pod does not start.

Only Events have the cause: a quota or an admission plugin rejects the Pod, a PVC is not bound, or a
node cannot mount a volume or has no network.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from sd_operator.base.errors import ApiError
from sd_operator.base.times import Clock
from sd_operator.clients.kube import EVENTS, Api
from sd_operator.resources.claim import ClaimView
from sd_operator.resources.observed import (
    POD_WARNING_SECONDS,
    WARNING_LOOK_SECONDS,
    JobView,
    PodView,
)
from sd_operator.resources.warning_event import WarningEvent, explains_a_start

log = logging.getLogger(__name__)

MIN_AGE_SECONDS = 2.0
"""How long a Job's controller takes to create its Pod, or an Event that says why it cannot."""
MIN_INTERVAL_SECONDS = 5.0
SELECTOR = "type=Warning"


@dataclass
class _LastList:
    """The last list of a namespace's Events."""

    at: float = float("-inf")
    """When they were listed, by the monotonic clock."""
    newest: dict[str, WarningEvent] = field(default_factory=dict)
    """The newest Warning by the uid of the Job, Pod or PersistentVolumeClaim."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the Events are listed."""


class JobWarnings:
    """The newest Warnings of Jobs, Pods and PVCs, from one LIST for all models of a namespace.

    API servers have no index of Events: a LIST of one Job's Events costs as much as a LIST of all.
    """

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._lists: defaultdict[str, _LastList] = defaultdict(_LastList)

    async def newest(self, job: JobView) -> str:
        """Return the message of a Job's newest Warning; empty if none is known."""
        warning = await self._newest(job.namespace, job.uid, job.created, MIN_AGE_SECONDS)
        return warning.message if warning is not None else ""

    async def newest_of_pod(self, pod: PodView) -> WarningEvent | None:
        """Return the newest Warning of a Pod; None if none is known or the Pod has no node."""
        if pod.scheduled is None:
            return None
        return await self._newest(pod.namespace, pod.uid, pod.scheduled, POD_WARNING_SECONDS)

    async def newest_of_claim(self, claim: ClaimView, pod: PodView) -> WarningEvent | None:
        """Return the newest Warning about the binding of a PVC that a Pod waits for."""
        return await self._newest(claim.namespace, claim.uid, pod.created, MIN_AGE_SECONDS)

    async def _newest(
        self, namespace: str, uid: str, began: datetime, min_age: float
    ) -> WarningEvent | None:
        last = self._lists[namespace]
        age = (self._clock.now() - began).total_seconds()
        async with last.lock:
            if self._is_due(last, age, min_age):
                last.at = self._clock.monotonic()
                await self._list(last, namespace)
        return last.newest.get(uid)

    async def _list(self, last: _LastList, namespace: str) -> None:
        try:
            events = (await self._api.list(EVENTS, namespace, fields=SELECTOR)).items
        except ApiError as refused:
            log.debug("cannot list the Events of namespace %s: %s", namespace, refused)
            return
        last.newest = {}
        for body in events:
            if not explains_a_start(body):
                continue
            event, uid = WarningEvent.from_body(body), body["involvedObject"].get("uid", "")
            if uid not in last.newest or last.newest[uid].at <= event.at:
                last.newest[uid] = event

    def _is_due(self, last: _LastList, age: float, min_age: float) -> bool:
        """Whether to list the Events: the last list is old, or this object was too young then."""
        ago = self._clock.monotonic() - last.at
        if age < min_age or ago < MIN_INTERVAL_SECONDS:
            return False
        return ago > min(WARNING_LOOK_SECONDS * 0.9, age - min_age)
