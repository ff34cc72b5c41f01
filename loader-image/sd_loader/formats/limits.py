"""Limits for the content of a file. Real models are far below them."""

from __future__ import annotations

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.snippet import snippet

MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_NAME = 512


def check_name(name: str) -> None:
    """Refuse a tensor name that is unsafe in a log line or a header."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise LoaderError(
            Reason.DAMAGED_FILE,
            f"a tensor's name is empty, unprintable or too long: {snippet(name)}",
        )
