"""Helpers for fetches of all kinds: retries that do not wait, a fetch, and a mounted Secret."""

from __future__ import annotations

from pathlib import Path

from sd_api.load import LoadRequest
from sd_loader.acquire import acquire
from sd_loader.handover import AtHand, Fetched, nothing_at_hand
from sd_loader.net.client import HttpClient
from sd_loader.net.patience import Retries
from sd_loader.progress import Report
from sd_loader.settings import Settings

QUICK = Retries(delays=(0, 0), longest_wait=0.5, sleep=lambda _seconds: None)
TOKEN = "hf_s3cret"


def fetch(
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report = lambda _progress: None,
    *,
    retries: Retries = QUICK,
    out: Path | None = None,
    at_hand: AtHand = nothing_at_hand,
    allow_local: bool = False,
) -> Fetched:
    """Fetch everything that a load needs, as the fetch container does."""
    client = HttpClient(settings, has_token=request.credentials, retries=retries)
    return acquire(request, client, into, report, out=out, at_hand=at_hand, allow_local=allow_local)


def secret(settings: Settings, token: str = TOKEN, host: str | None = None) -> None:
    """Write the files of a Secret with credentials where the loader expects its mount."""
    settings.credentials_dir.mkdir()
    (settings.credentials_dir / "token").write_text(token)
    if host is not None:
        (settings.credentials_dir / "host").write_text(host)
