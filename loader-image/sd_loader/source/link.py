"""Downloads a single file from an http(s) link."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from sd_api.wire import Progress, Source, Stage
from sd_loader.handover import Arrived, Fetched
from sd_loader.net.client import HttpClient
from sd_loader.net.download import Downloader, Wanted, too_large
from sd_loader.net.exchange import Resource
from sd_loader.net.partial import Got, PartialDownload
from sd_loader.net.ranges import RemoteFile
from sd_loader.progress import Report
from sd_loader.source.ref import Checks, SourceRef, inspector
from sd_loader.source.single import FILE_NAME, file_format


@dataclass(frozen=True)
class OpenLink:
    """A checked link, and a session for it."""

    ref: SourceRef
    checks: Checks
    client: HttpClient
    session: httpx2.Client
    token: str | None = field(repr=False)

    def is_begun(self, into: Path) -> bool:
        """Whether an earlier attempt has begun to download the file into this folder."""
        return PartialDownload.is_begun(into / FILE_NAME, self.ref.url)

    def open_ranges(self) -> RemoteFile | None:
        """Open the file for reading ranges. None if the server cannot serve ranges of one version.

        Raise LoaderError if the file's first bytes or size show that it cannot be loaded.
        """
        resource = Resource(self.session, self.ref.url, self.token)
        remote = RemoteFile.open(resource, self.client.retries)
        if remote is not None:
            inspector(self.ref, self.checks)(remote.head, remote.size)
            limit = self.client.settings.max_bytes
            if remote.size > limit:
                raise too_large(self.ref.url, f"is {remote.size} bytes", limit)
        return remote

    def download(self, into: Path, report: Report) -> Fetched:
        """Download the file, or resume its download."""
        path = into / FILE_NAME
        wanted = Wanted(
            url=self.ref.url,
            path=path,
            sha256=self.checks.sha256,
            inspect=inspector(self.ref, self.checks),
            own_digest=self.checks.is_stated,
        )
        downloader = Downloader(
            self.session, self.client.settings.max_bytes, self.token, self.client.retries
        )
        got = downloader.get(
            wanted,
            lambda done, total: report(
                Progress(stage=Stage.DOWNLOADING, bytes_done=done, bytes_total=total)
            ),
        )
        return Fetched(
            kind="file",
            path=FILE_NAME,
            files={FILE_NAME: arrived(path, got)},
            source=Source(sha256=got.sha256, size_bytes=got.size, format=file_format(path)),
        )


@contextlib.contextmanager
def open_link(ref: SourceRef, checks: Checks, client: HttpClient) -> Iterator[OpenLink]:
    """Check a link and its token before the first request, and open a session for it."""
    client.check_url(ref.url, ref.field)
    token = client.token(ref.url, ref.field, required=ref.needs_token)
    with client.session() as session, client.naming_default_secret(ref.url):
        yield OpenLink(ref, checks, client, session, token)


def fetch_link(
    ref: SourceRef, checks: Checks, client: HttpClient, into: Path, report: Report
) -> Fetched:
    """Download the link's file into a folder, or resume its download."""
    with open_link(ref, checks, client) as link:
        return link.download(into, report)


def arrived(path: Path, got: Got) -> Arrived:
    """Return the record of a downloaded file."""
    return Arrived(got.blake3, got.size, path.stat().st_mtime_ns, got.sha256)
