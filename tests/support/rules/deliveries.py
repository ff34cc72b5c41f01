"""Webhook calls that are still to be delivered."""

from __future__ import annotations

from typing import Any

from sd_api.status import OutboxEntry, WebhookEvent
from sd_operator.base import times
from sd_operator.base.errors import NotFoundError
from sd_operator.rules import outbox
from tests.support.rules.observed import NOW, UID, WANTED


def entry(event: WebhookEvent = WebhookEvent.LOADED, **fields: Any) -> OutboxEntry:
    """Return an outbox entry: a call that is not delivered yet."""
    return OutboxEntry(
        id=outbox.webhook_id(UID, WANTED, event),
        event=event,
        load_hash=WANTED,
        created_time=times.stamp(NOW),
        **fields,
    )


async def no_secret(namespace: str, name: str) -> dict[str, Any]:
    """Raise NotFoundError, as a read of a Secret in a namespace without Secrets does."""
    raise NotFoundError(f'secrets "{name}" not found in {namespace}', 404)
