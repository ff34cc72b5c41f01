"""Downloads one file over HTTP: resumes it, computes its digest, and enforces its size limit.

An incomplete file lies in `<name>.part`. `<name>.note` records its url and version, so that a later
attempt can resume it. The note stays after the download is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import LoaderError, TransientError
from sd_loader.net.error_body import body_text, quotation
from sd_loader.net.exchange import Resource, first_byte, refuse_encoded, total_bytes, validator
from sd_loader.net.http_errors import Refuse, refused, unreachable
from sd_loader.net.partial import Got, PartialDownload, ensure_space
from sd_loader.net.patience import RETRIES, Retries

Inspect = Callable[[bytes, int], None]
OnBytes = Callable[[int, int | None], None]

_TELLING_BYTES = 64


@dataclass(frozen=True)
class Wanted:
    """A file to download."""

    url: str

    path: Path

    size: int | None = None
    """Required size in bytes. None if it is not known."""

    sha256: str | None = None
    """Required SHA-256. None if it is not known."""

    inspect: Inspect = lambda _head, _size: None
    """Raises LoaderError if a file with these first bytes and this size cannot be the right one."""

    own_digest: bool = False
    """Whether the source itself states the digest. If so, a mismatch leads to one more download."""


@dataclass(frozen=True)
class Downloader:
    """Downloads files."""

    client: httpx2.Client

    max_bytes: int
    """Largest size of a file."""

    token: str | None = field(default=None, repr=False)
    """Sent only to the origin of each file's url."""

    retries: Retries = RETRIES

    refuse: Refuse = refused
    """Maps the source's error responses."""

    def get(self, wanted: Wanted, on_bytes: OnBytes) -> Got:
        """Download a file, or resume its download.

        on_bytes: called with the number of bytes so far, and the total if it is known.
        """
        done = PartialDownload.finished(wanted.path, wanted.url)
        if done is not None and wanted.sha256 in (None, done.sha256):
            return done
        with PartialDownload(wanted.path, wanted.url) as partial:
            try:
                got = self._whole(wanted, partial, on_bytes)
            except LoaderError as error:
                if not wanted.own_digest or error.reason is not Reason.DIGEST_MISMATCH:
                    raise
                # The bytes may have been damaged in transit. A second mismatch is not retried.
                partial.restart(None)
                got = self._whole(wanted, partial, on_bytes)
            partial.finish()
            return got

    def require_access(self, wanted: Wanted) -> None:
        """Raise the error of a download if the source does not give the file."""

        def ask() -> None:
            try:
                resource = Resource(self.client, wanted.url, self.token)
                with resource.get({"Range": "bytes=0-0"}) as response:
                    if response.status_code not in {200, 206}:
                        raise self.refuse(response, wanted.url, token_sent=self.token is not None)
            except httpx2.RequestError as error:
                raise unreachable(wanted.url, error) from error

        self.retries.run(ask)

    def _whole(self, wanted: Wanted, partial: PartialDownload, on_bytes: OnBytes) -> Got:
        """Download the missing bytes, and check the complete file."""
        self.retries.run(lambda: self._attempt(wanted, partial, on_bytes), lambda: partial.size)
        got = partial.got()
        if wanted.sha256 not in (None, got.sha256):
            raise LoaderError(
                Reason.DIGEST_MISMATCH,
                f"{redact_url(wanted.url)} has sha256 {got.sha256}, not {wanted.sha256}",
            )
        return got

    def _attempt(self, wanted: Wanted, partial: PartialDownload, on_bytes: OnBytes) -> None:
        try:
            with self._answer(wanted, partial) as response:
                # Status 416 with all bytes here: an earlier connection broke after the last byte.
                is_complete = response.status_code == 416 and total_bytes(response) == partial.size
                if not is_complete:
                    self._start(response, wanted, partial)
                    self._receive(response, wanted, partial, on_bytes)
                # The first chunk may have been too short to inspect.
                _inspect(wanted, response, partial.head(), partial.size)
        except httpx2.RequestError as error:
            raise unreachable(wanted.url, error) from error

    def _answer(
        self, wanted: Wanted, partial: PartialDownload
    ) -> AbstractContextManager[httpx2.Response]:
        """Request the missing bytes."""
        headers = {}
        if partial.size and partial.validator:
            headers = {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
        return Resource(self.client, wanted.url, self.token).get(headers)

    def _start(self, response: httpx2.Response, wanted: Wanted, partial: PartialDownload) -> None:
        """Check the response's range, version and size. Restart the partial file if needed."""
        shown = redact_url(str(response.url))
        match response.status_code:
            case 206 if partial.size and validator(response) not in (None, partial.validator):
                # The server ignored If-Range. The file would be mixed from two versions.
                partial.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE, f"{shown} changed while it was being downloaded"
                )
            case 206 if first_byte(response) == partial.size:
                pass
            case 206 | 416:
                partial.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE, f"{shown} sent another range than requested"
                )
            case 200:
                partial.restart(validator(response))
            case _:
                raise self.refuse(response, wanted.url, token_sent=self.token is not None)
        refuse_encoded(response)
        total = total_bytes(response)
        if total is None:
            return
        if wanted.size is not None and total != wanted.size:
            raise _wrong_size(wanted, f"is {total} bytes")
        if total > self.max_bytes:
            raise too_large(wanted.url, f"is {total} bytes", self.max_bytes)
        ensure_space(wanted.path.parent, total - partial.size)

    def _receive(
        self, response: httpx2.Response, wanted: Wanted, partial: PartialDownload, on_bytes: OnBytes
    ) -> None:
        stated = total_bytes(response)
        total = stated or wanted.size
        for chunk in response.iter_raw():
            if partial.size == 0 and len(chunk) >= _TELLING_BYTES:
                _inspect(wanted, response, chunk, total or len(chunk))
            after = partial.size + len(chunk)
            if wanted.size is not None and after > wanted.size:
                raise _wrong_size(wanted, f"has more than {wanted.size} bytes")
            if stated is not None and after > stated:
                partial.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE,
                    f"{redact_url(wanted.url)} sent more than the {stated} bytes that it stated",
                )
            if after > self.max_bytes:
                raise too_large(wanted.url, "is too large", self.max_bytes)
            partial.append(chunk)
            on_bytes(partial.size, total)
        if stated is not None and partial.size != stated:
            # A server may send less than the requested range.
            raise TransientError(
                Reason.SOURCE_UNREACHABLE,
                f"{redact_url(wanted.url)} sent {partial.size} of {stated} bytes",
            )
        if wanted.size is not None and partial.size != wanted.size:
            raise _wrong_size(wanted, f"ends after {partial.size} bytes")


def _inspect(wanted: Wanted, response: httpx2.Response, head: bytes, size: int) -> None:
    """Inspect a file's first bytes. If they are refused, quote what the response says."""
    try:
        wanted.inspect(head, size)
    except LoaderError as error:
        if response.status_code != 200:
            raise  # The first bytes came with an earlier response, perhaps from another address.
        words = quotation(response, body_text(head))
        raise LoaderError(error.reason, error.message + words) from error


def too_large(url: str, finding: str, limit: int) -> LoaderError:
    """Return the error for a file above the limit. finding: the predicate of the message."""
    return LoaderError(Reason.TOO_LARGE, f"{redact_url(url)} {finding}; the limit is {limit} bytes")


def _wrong_size(wanted: Wanted, finding: str) -> LoaderError:
    return LoaderError(
        Reason.DIGEST_MISMATCH,
        f"{redact_url(wanted.url)} {finding}; the source states {wanted.size}",
    )
