"""One file over HTTP: resumed where it stopped, digested on the way, never more than agreed.

Beside the file lie, while it is incomplete, `<name>.part` with its bytes, and always `<name>.note`
with what a later attempt must know: of which url and version the bytes are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from sd_api.netguard import MAX_REDIRECTS, redact
from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.source.answers import RETRIES, Retries, TransientError, refused, unreachable
from sd_loader.source.part import Part, ensure_space

Inspect = Callable[[bytes, int], None]
OnBytes = Callable[[int, int | None], None]

_TELLING_BYTES = 64


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    size, sha256: what it must be, where that is known. own_digest: the source itself says so,
    and wrong bytes are worth one fresh try.
    inspect: raises for first bytes (of a file so long) that cannot be the file wanted.
    """

    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None
    inspect: Inspect = lambda _head, _size: None
    own_digest: bool = False


@dataclass(frozen=True)
class Got:
    """A file that was downloaded in full."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Downloader:
    """Downloads files. token: sent to the origin of each file's url, and to no other."""

    client: httpx2.Client
    max_bytes: int
    token: str | None = field(default=None, repr=False)
    retries: Retries = RETRIES

    def get(self, wanted: Wanted, on_bytes: OnBytes) -> Got:
        """Download a file, or finish a download; on_bytes hears of the bytes so far and in all."""
        done = Part.finished(wanted.path, wanted.url)
        if done is not None and wanted.sha256 in (None, done[0]):
            return Got(*done)
        with Part(wanted.path, wanted.url) as part:
            try:
                got = self._whole(wanted, part, on_bytes)
            except LoaderError as error:
                if not wanted.own_digest or error.reason is not Reason.DIGEST_MISMATCH:
                    raise
                # Bits flip on the way; what is wrong twice in a row is wrong at the source.
                part.restart(None)
                got = self._whole(wanted, part, on_bytes)
            part.finish()
            return got

    def _whole(self, wanted: Wanted, part: Part, on_bytes: OnBytes) -> Got:
        """Receive what is missing of the part, and compare it with what is known of the file."""
        self.retries.run(lambda: self._attempt(wanted, part, on_bytes), lambda: part.size)
        # Not only at the first chunk: it may have been too short to tell.
        wanted.inspect(part.head(), part.size)
        if wanted.sha256 not in (None, part.sha256):
            raise LoaderError(
                Reason.DIGEST_MISMATCH,
                f"{redact(wanted.url)} has sha256 {part.sha256}, not {wanted.sha256}",
            )
        return Got(part.sha256, part.size)

    def _attempt(self, wanted: Wanted, part: Part, on_bytes: OnBytes) -> None:
        try:
            with self._answer(wanted, part) as response:
                if response.status_code == 416 and _total(response) == part.size:
                    return  # the cut came after the last byte
                self._start(response, wanted, part)
                self._receive(response, wanted, part, on_bytes)
        except httpx2.RequestError as error:
            raise unreachable(wanted.url, error) from error

    @contextlib.contextmanager
    def _answer(self, wanted: Wanted, part: Part) -> Iterator[httpx2.Response]:
        """Ask for what is missing and follow redirects; the token stays with the first origin."""
        headers = {}
        if part.size and part.validator:
            headers = {"Range": f"bytes={part.size}-", "If-Range": part.validator}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = self.client.build_request("GET", wanted.url, headers=headers)
        for _ in range(1 + MAX_REDIRECTS):
            response = self.client.send(request, stream=True, follow_redirects=False)
            with contextlib.closing(response):
                following = response.next_request
                if following is None:
                    yield response
                    return
            if _origin(following.url) != _origin(request.url):
                following.headers.pop("Authorization", None)
            request = following
        raise LoaderError(
            Reason.SOURCE_UNREACHABLE,
            f"{redact(wanted.url)} redirects more than {MAX_REDIRECTS} times",
        )

    def _start(self, response: httpx2.Response, wanted: Wanted, part: Part) -> None:
        """Bring the part to where the answer's body begins, and refuse a body that cannot fit."""
        shown = redact(str(response.url))
        match response.status_code:
            case 206 if _first_byte(response) == part.size:
                pass
            case 206 | 416:
                part.restart(None)
                raise TransientError(
                    Reason.SOURCE_UNREACHABLE, f"{shown} answered with another range"
                )
            case 200:
                part.restart(_validator(response))
            case _:
                raise refused(response, str(response.url), token_sent=self.token is not None)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise LoaderError(
                Reason.SOURCE_UNREACHABLE, f"{shown} answers compressed, which was not asked for"
            )
        total = _total(response)
        if total is None:
            return
        if wanted.size is not None and total != wanted.size:
            raise _wrong_size(wanted, f"is {total} bytes")
        if total > self.max_bytes:
            raise self._too_large(wanted, f"is {total} bytes")
        ensure_space(wanted.path.parent, total - part.size)

    def _receive(
        self, response: httpx2.Response, wanted: Wanted, part: Part, on_bytes: OnBytes
    ) -> None:
        stated = _total(response)
        total = stated or wanted.size
        for chunk in response.iter_raw():
            if part.size == 0 and len(chunk) >= _TELLING_BYTES:
                wanted.inspect(chunk, total or len(chunk))
            after = part.size + len(chunk)
            if wanted.size is not None and after > wanted.size:
                raise _wrong_size(wanted, f"goes on after {wanted.size} bytes")
            if after > self.max_bytes:
                raise self._too_large(wanted, "goes on")
            part.append(chunk)
            on_bytes(part.size, total)
        if stated is not None and part.size != stated:
            # A server may answer with less than the range that it was asked for.
            raise TransientError(
                Reason.SOURCE_UNREACHABLE,
                f"{redact(wanted.url)} sent {part.size} of {stated} bytes",
            )
        if wanted.size is not None and part.size != wanted.size:
            raise _wrong_size(wanted, f"ends after {part.size} bytes")

    def _too_large(self, wanted: Wanted, what: str) -> LoaderError:
        return LoaderError(
            Reason.TOO_LARGE, f"{redact(wanted.url)} {what}; the limit is {self.max_bytes} bytes"
        )


def _wrong_size(wanted: Wanted, what: str) -> LoaderError:
    return LoaderError(
        Reason.DIGEST_MISMATCH, f"{redact(wanted.url)} {what}; the source states {wanted.size}"
    )


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _validator(response: httpx2.Response) -> str | None:
    """What If-Range can be asked with: a strong ETag or a date, else nothing to resume by."""
    etag: str = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified")


def _total(response: httpx2.Response) -> int | None:
    """Length of the whole file, as far as the answer tells."""
    header, pattern = (
        ("Content-Length", r"(\d{1,18})")
        if response.status_code == 200
        else ("Content-Range", r"bytes (?:\d+-\d+|\*)/(\d{1,18})")
    )
    match = re.fullmatch(pattern, response.headers.get(header, "").strip(), re.ASCII)
    return int(match[1]) if match else None


def _first_byte(response: httpx2.Response) -> int | None:
    match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""), re.ASCII)
    return int(match[1]) if match else None
