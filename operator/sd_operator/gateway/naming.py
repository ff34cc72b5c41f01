"""Derives the resource's name from a model id."""

from __future__ import annotations

import hashlib
import re

from sd_api.names import NAME_MAX_LENGTH

SLUG_MAX_LENGTH = 40

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def resource_name(model_id: str) -> str:
    """Return the id itself if it is a DNS label, else a slug of it with a digest."""
    if len(model_id) <= NAME_MAX_LENGTH and _LABEL.fullmatch(model_id):
        return model_id
    slug = re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")[:SLUG_MAX_LENGTH].rstrip("-")
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest
