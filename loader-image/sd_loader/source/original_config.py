"""The original YAML config of a checkpoint, from its own link (spec.originalConfig)."""

from __future__ import annotations

from pathlib import Path

from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.convert.plan.original import MAX_BYTES, read_original
from sd_loader.errors import LoaderError
from sd_loader.net.credentials import read_credentials, token_for
from sd_loader.net.download import Downloader, Wanted
from sd_loader.net.http_errors import RETRIES, Retries
from sd_loader.net.transport import PACE, Pace, make_client
from sd_loader.settings import Settings
from sd_loader.source.link import check_link

FILE_NAME = "config"


def fetch_config(
    url: str,
    request: LoadRequest,
    settings: Settings,
    into: Path,
    *,
    allow_local: bool = False,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> str:
    """Download the config into the source folder and check it; the name it has there.

    The token goes along only where the config lies on the token's own host: others are public.
    allow_local: as for the source itself, a path on this machine.
    """
    path = into / FILE_NAME
    if allow_local and "://" not in url:
        path.write_bytes(_local(Path(url)))
    else:
        _download(url, path, request, settings, retries, pace)
    read_original(path)
    return FILE_NAME


def _download(
    url: str, path: Path, request: LoadRequest, settings: Settings, retries: Retries, pace: Pace
) -> None:
    try:
        check_link(url, settings)
        with make_client(settings, pace) as client:
            Downloader(client, MAX_BYTES, _token(url, request, settings), retries).get(
                Wanted(url=url, path=path), lambda _done, _total: None
            )
    except LoaderError as error:
        # Messages speak of a link, and the model has two.
        what = error.message.removeprefix("spec.url: ").removeprefix("spec.url ")
        raise LoaderError(error.reason, f"spec.originalConfig: {what}") from error


def _token(url: str, request: LoadRequest, settings: Settings) -> str | None:
    if not request.credentials:
        return None
    credentials = read_credentials(settings.credentials_dir)
    try:
        return token_for(url, credentials, settings)
    except LoaderError as error:
        if error.reason is Reason.CREDENTIALS_HOST_MISMATCH:
            return None
        raise


def _local(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND,
            f"spec.originalConfig: {redact_url(str(path))} cannot be read: {error.strerror}",
        ) from error
