"""Derives the resource's name from a model id, and proposes names."""

from __future__ import annotations

import hashlib
import re
import unicodedata

ID_AS_NAME_MAX_LENGTH = 52
"""Maximum length of a model id that is used as the resource's name. As for CronJob names, this
leaves room for a suffix of 11 characters in a label value of 63."""
SLUG_MAX_LENGTH = 40

_READ_MAX_LENGTH = 400
"""How many characters of a text are read for a name, which bounds the time for a hostile text."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def resource_name(model_id: str) -> str:
    """Return the id itself if it is a short DNS label, else a slug of the id with a digest."""
    if len(model_id) <= ID_AS_NAME_MAX_LENGTH and _LABEL.fullmatch(model_id):
        return model_id
    slug = _slug(model_id)
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


def proposed_name(*texts: str) -> str:
    """Return a slug of the first text with an ASCII letter or digit; empty if no text has one.

    Accents are dropped: Été becomes ete.
    """
    for text in texts:
        plain = unicodedata.normalize("NFKD", text[:_READ_MAX_LENGTH])
        if slug := _slug("".join(char for char in plain if not unicodedata.combining(char))):
            return slug
    return ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:SLUG_MAX_LENGTH].rstrip("-")
