"""A single file from an http(s) link."""

from __future__ import annotations

from pathlib import Path

import httpx2

from sd_api.load import LoadRequest
from sd_api.netguard import AddressRefusedError
from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_api.spec import ModelType
from sd_api.wire import Progress, Source, Stage
from sd_loader.errors import LoaderError
from sd_loader.formats.sniff import HEAD_BYTES, Container, identify
from sd_loader.handover import Fetched
from sd_loader.net.credentials import read_credentials, token_for
from sd_loader.net.download import Downloader, Wanted, too_large
from sd_loader.net.exchange import Link
from sd_loader.net.http_errors import RETRIES, Retries
from sd_loader.net.partial import Part
from sd_loader.net.ranges import RemoteFile
from sd_loader.net.transport import PACE, Pace, make_client
from sd_loader.progress import Report
from sd_loader.settings import Settings
from sd_loader.streaming import Streaming, stream

FILE_NAME = "download"


def fetch_link(
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    streaming: Streaming | None = None,
    retries: Retries = RETRIES,
    pace: Pace = PACE,
) -> Fetched:
    """Download the link's file, or finish its download.

    streaming: how it is converted while it comes, where it can be. What was begun as a download is
    finished as one.
    """
    check_link(request.url, settings)
    if request.git_revision is not None:
        raise LoaderError(
            Reason.INVALID_SPEC,
            "spec.gitRevision is for Hub repos; a link is pinned by spec.sha256",
        )
    token = None
    if request.credentials:
        token = token_for(request.url, read_credentials(settings.credentials_dir), settings)
    path = into / FILE_NAME
    wanted = Wanted(
        url=request.url,
        path=path,
        sha256=request.sha256,
        inspect=lambda head, size: refuse_what_cannot_load(request, head, size),
    )
    with make_client(settings, pace) as client:
        link = Link(client, request.url, token)
        begun = Part.is_begun(path, request.url)
        if streaming is not None and request.sha256 is None and not begun:
            streamed = stream(
                lambda: _look_at(link, request, settings, retries),
                streaming.plan,
                request.verify,
                into,
                streaming.out,
                report,
            )
            if streamed is not None:
                return Fetched(
                    kind="file",
                    path=FILE_NAME,
                    source=streamed.source,
                    converted=streamed.converted,
                )
        got = Downloader(client, settings.max_bytes, token, retries).get(
            wanted,
            lambda done, total: report(
                Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total)
            ),
        )
    return Fetched(
        kind="file",
        path=FILE_NAME,
        source=Source(sha256=got.sha256, size_bytes=got.size, format=file_format(path)),
    )


def _look_at(
    link: Link, request: LoadRequest, settings: Settings, retries: Retries
) -> RemoteFile | None:
    remote = RemoteFile.open(link, retries)
    if remote is not None:
        refuse_what_cannot_load(request, remote.head, remote.size)
        if remote.size > settings.max_bytes:
            raise too_large(request.url, f"is {remote.size} bytes", settings.max_bytes)
    return remote


def check_link(url: str, settings: Settings) -> None:
    """Refuse what is no link, or one that may not be called, before anything else happens."""
    if "://" not in url:
        raise LoaderError(
            Reason.INVALID_SPEC, f"spec.url: {redact_url(url)} is not an http(s) link"
        )
    try:
        httpx2.URL(url)
        settings.guard().check_url(url)
    except httpx2.InvalidURL:
        # Without its cause, which quotes the url: a password with a slash is taken for a port.
        raise LoaderError(Reason.INVALID_SPEC, "spec.url is not a well-formed link") from None
    except AddressRefusedError as error:
        raise LoaderError(Reason.ADDRESS_REFUSED, str(error)) from error


def file_format(path: Path) -> str:
    """A model file's format, in the words of status.source."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    container = identify(head, path.stat().st_size)
    return "safetensors" if container is Container.SAFETENSORS else "ckpt"


def refuse_what_cannot_load(request: LoadRequest, head: bytes, size: int) -> None:
    """Tell from the first bytes, where they suffice, rather than download the rest in vain."""
    shown = redact_url(request.url)
    try:
        container = identify(head[:HEAD_BYTES], size)
    except LoaderError as error:
        raise LoaderError(error.reason, f"{shown}: {error.message}") from error
    # A trained model's zip may be of a folder; it is looked at once its directory is here.
    may_be_folder = container is Container.ZIP and request.model_type is ModelType.API_TRAINED
    if request.from_safetensors and container is not Container.SAFETENSORS and not may_be_folder:
        raise LoaderError(
            Reason.UNSAFE_MODEL, f"{shown} is a pickle, and spec.fromSafetensors is true"
        )
