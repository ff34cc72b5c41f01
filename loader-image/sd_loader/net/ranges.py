"""Reads ranges of a file behind a link. All ranges are of one version, also after a retry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2

from sd_api.reasons import Reason
from sd_api.redaction import redact_url
from sd_loader.errors import SourceChangedError, TransientError
from sd_loader.net.exchange import Resource, first_byte, refuse_encoded, total_bytes, validator
from sd_loader.net.http_errors import refused, unreachable
from sd_loader.net.patience import Retries

HEAD_BYTES = 1 << 20
"""Size of the first read. SDXL's safetensors header and a checkpoint's pickle are smaller."""

Take = Callable[[int, memoryview], None]


@dataclass(frozen=True)
class RemoteFile:
    """One version of a file."""

    resource: Resource
    retries: Retries

    size: int
    """In bytes."""

    version: str
    """The ETag or date that identifies this version."""

    head: bytes
    """The first bytes."""

    @classmethod
    def open(cls, resource: Resource, retries: Retries) -> RemoteFile | None:
        """Read the head of a file. None if the server cannot serve ranges of one version of it."""
        return retries.run(lambda: cls._open(resource, retries))

    @classmethod
    def _open(cls, resource: Resource, retries: Retries) -> RemoteFile | None:
        try:
            with resource.get({"Range": f"bytes=0-{HEAD_BYTES - 1}"}) as response:
                if response.status_code in (200, 416):
                    return None
                if response.status_code != 206:
                    raise refused(response, resource.url, token_sent=resource.token is not None)
                refuse_encoded(response)
                size, version = total_bytes(response), validator(response)
                if size is None or version is None or first_byte(response) != 0:
                    return None
                head = b""
                for chunk in response.iter_raw():
                    head += chunk[: HEAD_BYTES - len(head)]
                    if len(head) == HEAD_BYTES:
                        break
        except httpx2.RequestError as error:
            raise unreachable(resource.url, error) from error
        return cls(resource, retries, size, version, head) if head else None

    def read(self, start: int, end: int) -> bytes:
        """Read a small range."""
        content = bytearray()

        def take(_position: int, chunk: memoryview) -> None:
            content.extend(chunk)

        self.stream(start, end, take)
        return bytes(content)

    def stream(self, start: int, end: int, take: Take) -> None:
        """Pass the bytes of a range to `take`, in order and each once, also after a retry."""
        position = start
        if start < len(self.head):
            at_hand = memoryview(self.head)[start:end]
            take(start, at_hand)
            position += at_hand.nbytes

        def attempt() -> None:
            nonlocal position
            try:
                for chunk in self._answered(position, end):
                    wanted = memoryview(chunk)[: end - position]
                    take(position, wanted)
                    position += wanted.nbytes
                    if position == end:
                        return
            except httpx2.RequestError as error:
                raise unreachable(self.resource.url, error) from error
            raise TransientError(
                Reason.SOURCE_UNREACHABLE,
                f"{redact_url(self.resource.url)} stopped at byte {position}, before byte {end}",
            )

        if position < end:
            self.retries.run(attempt, lambda: position)

    def _answered(self, start: int, end: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Range": self.version}
        with self.resource.get(headers) as response:
            self._check(response, start)
            yield from response.iter_raw()

    def _check(self, response: httpx2.Response, start: int) -> None:
        if response.status_code in (200, 412, 416):
            raise SourceChangedError
        if response.status_code != 206:
            token_sent = self.resource.token is not None
            raise refused(response, self.resource.url, token_sent=token_sent)
        refuse_encoded(response)
        if total_bytes(response) != self.size or validator(response) not in (None, self.version):
            raise SourceChangedError
        if first_byte(response) != start:
            raise TransientError(
                Reason.SOURCE_UNREACHABLE,
                f"{redact_url(self.resource.url)} sent another range than requested",
            )
