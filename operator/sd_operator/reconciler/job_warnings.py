"""Why a Job has no Pods: quota and admission say it in its Events alone."""

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
"""A Job's controller needs as long to make its Pod, or to say why it cannot."""
MIN_INTERVAL_SECONDS = 5.0
SELECTOR = "involvedObject.kind=Job,type=Warning"


@dataclass
class _Look:
    """What a namespace's Events said when they were last listed. messages: by the Job's uid."""

    at: float = float("-inf")
    messages: dict[str, str] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class JobWarnings:
    """The newest Warning of each Job: one LIST a namespace, which all its models share.

    An API server has no index of Events: a LIST of one Job's costs it as much as one of all.
    """

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._looks: defaultdict[str, _Look] = defaultdict(_Look)

    async def newest(self, job: JobView) -> str:
        """What the newest Warning says of a Job; empty if there is none, or none is known yet."""
        look = self._looks[job.namespace]
        async with look.turn:
            if self._is_due(look, job):
                look.at = self._clock.monotonic()
                await self._list(look, job.namespace)
        return look.messages.get(job.uid, "")

    async def _list(self, look: _Look, namespace: str) -> None:
        try:
            events = (await self._api.list(EVENTS, namespace, fields=SELECTOR)).items
        except ApiError as refused:
            log.debug("no Events of Jobs in %s: %s", namespace, refused)
            return
        events.sort(key=lambda one: one.get("lastTimestamp") or "")
        look.messages = {
            one["involvedObject"].get("uid", ""): str(one.get("message") or "") for one in events
        }

    def _is_due(self, look: _Look, job: JobView) -> bool:
        """Whether the last list of Events is old, or came too early for this Job."""
        ago = self._clock.monotonic() - look.at
        age = (self._clock.now() - job.created).total_seconds()
        if age < MIN_AGE_SECONDS or ago < MIN_INTERVAL_SECONDS:
            return False
        return ago > min(WARNING_LOOK_SECONDS * 0.9, age - MIN_AGE_SECONDS)
