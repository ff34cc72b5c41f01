"""Fetches a small file that belongs to a model, such as a checkpoint's original config."""

from __future__ import annotations

from pathlib import Path

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError, naming
from sd_loader.net.client import HttpClient


def fetch_small_file(
    url: str,
    field: str,
    max_bytes: int,
    client: HttpClient,
    path: Path,
    *,
    allow_local: bool = False,
) -> None:
    """Download the file to `path`, or copy it there.

    field: name of the url in messages, such as a field of the spec. max_bytes: a larger file is
    refused. allow_local: a url without a scheme is a path on this machine.
    """
    with naming(field):
        if allow_local and "://" not in url:
            path.write_bytes(_read(Path(url), max_bytes))
            return
        # Imported here: a local file needs no HTTP, which takes 0.1 s to import.
        from sd_loader.net.download import Downloader, Wanted

        client.check_url(url, field)
        token = client.token(url, field, required=False)
        with client.session() as session:
            Downloader(session, max_bytes, token, client.retries).get(
                Wanted(url=url, path=path), lambda _done, _total: None
            )


def _read(path: Path, max_bytes: int) -> bytes:
    shown = redact_url(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise LoaderError(
            Reason.SOURCE_NOT_FOUND, f"{shown} cannot be read: {error.strerror}"
        ) from error
    if len(content) > max_bytes:
        raise LoaderError(Reason.TOO_LARGE, f"{shown} is too large; the limit is {max_bytes} bytes")
    return content
