"""Derives the resource's name from a model id."""

from __future__ import annotations

import hashlib
import re

ID_AS_NAME_MAX_LENGTH = 52
"""The limit of CronJob names, which leaves room for a suffix of 11 in a label of 63."""
SLUG_MAX_LENGTH = 40

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def resource_name(model_id: str) -> str:
    """Return the id itself if it is a short DNS label, else a slug of it with a digest."""
    if len(model_id) <= ID_AS_NAME_MAX_LENGTH and _LABEL.fullmatch(model_id):
        return model_id
    slug = re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")[:SLUG_MAX_LENGTH].rstrip("-")
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest
