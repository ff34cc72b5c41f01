"""Downloads one file over HTTP: resumes it, computes its digest, and limits its size.

`<name>.part` beside the file holds the bytes of an incomplete download. `<name>.note` tells a later
attempt which url and which version of the file the bytes are from.
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
from sd_loader.net.exchange import Resource, first_byte, refuse_encoded, total_bytes, validator
from sd_loader.net.http_errors import RETRIES, Retries, refused, unreachable
from sd_loader.net.partial import PartialDownload, ensure_space

Inspect = Callable[[bytes, int], None]
OnBytes = Callable[[int, int | None], None]

_TELLING_BYTES = 64


@dataclass(frozen=True)
class Wanted:
    """A file to download."""

    url: str

    path: Path
    """Where the finished file is put."""

    size: int | None = None
    """The size that the file must have. None if it is not known."""

    sha256: str | None = None
    """The digest that the file must have. None if it is not known."""

    inspect: Inspect = lambda _head, _size: None
    """Takes the file's first bytes and its size. Raises LoaderError if the file cannot be used."""

    own_digest: bool = False
    """Whether the source itself gives the digest. Then wrong bytes are downloaded once more."""


@dataclass(frozen=True)
class Got:
    """A file that was downloaded in full."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Downloader:
    """Downloads files over one set of connections."""

    client: httpx2.Client
    max_bytes: int
    token: str | None = field(default=None, repr=False)
    """Sent to the origin of each file's url, and not to others."""
    retries: Retries = RETRIES

    def get(self, wanted: Wanted, on_bytes: OnBytes) -> Got:
        """Download a file, or finish its download.

        on_bytes is called with the bytes that are here and the total, if it is known.
        """
        done = PartialDownload.finished(wanted.path, wanted.url)
        if done is not None and wanted.sha256 in (None, done[0]):
            return Got(*done)
        with PartialDownload(wanted.path, wanted.url) as partial:
            try:
                got = self._whole(wanted, partial, on_bytes)
            except LoaderError as error:
                if not wanted.own_digest or error.reason is not Reason.DIGEST_MISMATCH:
                    raise
                # Bits may flip on the way; if the bytes are wrong twice, the source is wrong.
                partial.restart(None)
                got = self._whole(wanted, partial, on_bytes)
            partial.finish()
            return got

    def _whole(self, wanted: Wanted, partial: PartialDownload, on_bytes: OnBytes) -> Got:
        """Receive the missing bytes, and compare the file with what is known of it."""
        self.retries.run(lambda: self._attempt(wanted, partial, on_bytes), lambda: partial.size)
        # Again, since the first chunk may have been too short.
        wanted.inspect(partial.head(), partial.size)
        if wanted.sha256 not in (None, partial.sha256):
            raise LoaderError(
                Reason.DIGEST_MISMATCH,
                f"{redact_url(wanted.url)} has sha256 {partial.sha256}, not {wanted.sha256}",
            )
        return Got(partial.sha256, partial.size)

    def _attempt(self, wanted: Wanted, partial: PartialDownload, on_bytes: OnBytes) -> None:
        try:
            with self._answer(wanted, partial) as response:
                if response.status_code == 416 and total_bytes(response) == partial.size:
                    return  # the cut came after the last byte
                self._start(response, wanted, partial)
                self._receive(response, wanted, partial, on_bytes)
        except httpx2.RequestError as error:
            raise unreachable(wanted.url, error) from error

    def _answer(
        self, wanted: Wanted, partial: PartialDownload
    ) -> AbstractContextManager[httpx2.Response]:
        """Ask for the missing bytes."""
        headers = {}
        if partial.size and partial.validator:
            headers = {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}
        return Resource(self.client, wanted.url, self.token).get(headers)

    def _start(self, response: httpx2.Response, wanted: Wanted, partial: PartialDownload) -> None:
        """Move to the position at which the body begins, and refuse a body that cannot fit."""
        shown = redact_url(str(response.url))
        match response.status_code:
            case 206 if partial.size and validator(response) not in (None, partial.validator):
                # If-Range was ignored: these would be halves of two versions.
                partial.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE, f"{shown} changed while it was downloaded"
                )
            case 206 if first_byte(response) == partial.size:
                pass
            case 206 | 416:
                partial.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE, f"{shown} answered with another range"
                )
            case 200:
                partial.restart(validator(response))
            case _:
                raise refused(response, str(response.url), token_sent=self.token is not None)
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
                wanted.inspect(chunk, total or len(chunk))
            after = partial.size + len(chunk)
            if wanted.size is not None and after > wanted.size:
                raise _wrong_size(wanted, f"goes on after {wanted.size} bytes")
            if stated is not None and after > stated:
                partial.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE,
                    f"{redact_url(wanted.url)} goes on after the {stated} bytes that it states",
                )
            if after > self.max_bytes:
                raise too_large(wanted.url, "goes on", self.max_bytes)
            partial.append(chunk)
            on_bytes(partial.size, total)
        if stated is not None and partial.size != stated:
            # A server may send less than the range that was requested.
            raise TransientError(
                Reason.SOURCE_UNREACHABLE,
                f"{redact_url(wanted.url)} sent {partial.size} of {stated} bytes",
            )
        if wanted.size is not None and partial.size != wanted.size:
            raise _wrong_size(wanted, f"ends after {partial.size} bytes")


def too_large(url: str, what: str, limit: int) -> LoaderError:
    """The error for a file that exceeds the limit."""
    return LoaderError(Reason.TOO_LARGE, f"{redact_url(url)} {what}; the limit is {limit} bytes")


def _wrong_size(wanted: Wanted, what: str) -> LoaderError:
    return LoaderError(
        Reason.DIGEST_MISMATCH, f"{redact_url(wanted.url)} {what}; the source states {wanted.size}"
    )
