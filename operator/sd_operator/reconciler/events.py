"""Emits Events about models and PersistentVolumeClaims."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from datetime import datetime

from sd_api import names
from sd_operator.base import times
from sd_operator.base.errors import ApiError
from sd_operator.clients.kube import EVENTS, Api
from sd_operator.rules.decision import EventPlan

log = logging.getLogger(__name__)

MESSAGE_MAX_LENGTH = 1024


async def emit(api: Api, about: Mapping[str, str], event: EventPlan, now: datetime) -> None:
    """Emit an Event; a failure is logged and changes nothing else.

    about: the reference to the object, as in involvedObject.
    """
    time = times.stamp(now)
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{about['name']}.{secrets.token_hex(8)}",
            "namespace": about["namespace"],
        },
        "involvedObject": dict(about),
        "type": event.type.value,
        "reason": event.reason.value,
        "message": event.message[:MESSAGE_MAX_LENGTH],
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "reportingInstance": names.FIELD_MANAGER,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
    log.info("%s: %s", event.reason, body["message"])
    try:
        await api.create(EVENTS, about["namespace"], body)
    except ApiError as refused:
        log.warning("cannot emit the Event %s: %s", event.reason, refused)
