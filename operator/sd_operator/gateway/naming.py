"""Derives the resource's name from a model id, and proposes names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

ID_AS_NAME_MAX_LENGTH = 52
"""The limit of CronJob names, which leaves room for a suffix of 11 in a label of 63."""
SLUG_MAX_LENGTH = 40

_READ_MAX_LENGTH = 400
"""How many characters of a text a name is made from, which bounds the time for a hostile one."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def resource_name(model_id: str) -> str:
    """Return the id itself if it is a short DNS label, else a slug of it with a digest."""
    if len(model_id) <= ID_AS_NAME_MAX_LENGTH and _LABEL.fullmatch(model_id):
        return model_id
    slug = _slug(model_id)
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


def proposed_name(*texts: str) -> str:
    """Return a name made of the first text with an ASCII letter or digit; empty if none has one.

    Accents are dropped: Été becomes ete.
    """
    for text in texts:
        plain = unicodedata.normalize("NFKD", text[:_READ_MAX_LENGTH])
        if slug := _slug("".join(char for char in plain if not unicodedata.combining(char))):
            return slug
    return ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:SLUG_MAX_LENGTH].rstrip("-")
