"""Why a Job has no Pods: only its Events have the message of the quota or admission plugin."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field

from sd_operator.base.errors import ApiError
from sd_operator.base.times import Clock
from sd_operator.clients.kube import EVENTS, Api
from sd_operator.resources.observed import WARNING_LOOK_SECONDS, JobView

log = logging.getLogger(__name__)

MIN_AGE_SECONDS = 2.0
"""How long a Job's controller takes to create its Pod, or an Event that says why it cannot."""
MIN_INTERVAL_SECONDS = 5.0
SELECTOR = "involvedObject.kind=Job,type=Warning"


@dataclass
class _LastList:
    """The last list of a namespace's Events."""

    at: float = float("-inf")
    """When they were listed, by the monotonic clock."""
    messages: dict[str, str] = field(default_factory=dict)
    """The newest Warning by the Job's uid."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the Events are listed."""


class JobWarnings:
    """The newest Warning Event of each Job, from one LIST that all models of a namespace share.

    API servers have no index of Events: listing those of one Job costs as much as listing all.
    """

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._lists: defaultdict[str, _LastList] = defaultdict(_LastList)

    async def newest(self, job: JobView) -> str:
        """Return the message of a Job's newest Warning; empty if none is known."""
        last = self._lists[job.namespace]
        async with last.lock:
            if self._is_due(last, job):
                last.at = self._clock.monotonic()
                await self._list(last, job.namespace)
        return last.messages.get(job.uid, "")

    async def _list(self, last: _LastList, namespace: str) -> None:
        try:
            events = (await self._api.list(EVENTS, namespace, fields=SELECTOR)).items
        except ApiError as refused:
            log.debug("no Events of Jobs in %s: %s", namespace, refused)
            return
        events.sort(key=lambda event: event.get("lastTimestamp") or "")
        last.messages = {
            event["involvedObject"].get("uid", ""): str(event.get("message") or "")
            for event in events
        }

    def _is_due(self, last: _LastList, job: JobView) -> bool:
        """Whether the last list of Events is old, or came too early for this Job."""
        ago = self._clock.monotonic() - last.at
        age = (self._clock.now() - job.created).total_seconds()
        if age < MIN_AGE_SECONDS or ago < MIN_INTERVAL_SECONDS:
            return False
        return ago > min(WARNING_LOOK_SECONDS * 0.9, age - MIN_AGE_SECONDS)
