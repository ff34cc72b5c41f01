"""What fetches of all kinds need: tries that do not wait, a folder, and a Secret."""

from __future__ import annotations

from sd_loader.net.http_errors import Retries
from sd_loader.settings import Settings

QUICK = Retries(delays=(0, 0), longest_wait=0.5, sleep=lambda _seconds: None)
TOKEN = "hf_s3cret"


def secret(settings: Settings, token: str = TOKEN, host: str | None = None) -> None:
    """Mount a credentials Secret."""
    settings.credentials_dir.mkdir()
    (settings.credentials_dir / "token").write_text(token)
    if host is not None:
        (settings.credentials_dir / "host").write_text(host)
