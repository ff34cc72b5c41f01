"""Whether the records of a zip checkpoint are what they were when it was written.

Whoever reads a record anyway feeds its bytes; where nobody does, `verify_records` reads them.
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Container, Mapping

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.tensors import TensorFile

Extent = tuple[int, int]
"""Of a file: the first byte and the number of bytes."""

_CHUNK = 1 << 20


class Checker:
    """Compares records with their CRC-32 as their bytes go by, in pieces of any size.

    A record that is not seen whole, from its first byte to its last, is not compared.
    """

    def __init__(self, checksums: Mapping[Extent, int]) -> None:
        self._checksums = checksums
        self._extents = sorted(extent for extent in checksums if extent[1])
        self._starts = [offset for offset, _ in self._extents]
        self._seen: dict[Extent, Extent] = {}
        self.compared = 0

    def feed(self, offset: int, data: bytes | memoryview) -> None:
        """Take the bytes at this place of the file; raises where a record ends with another CRC."""
        end = offset + len(data)
        view = memoryview(data)
        first = max(0, bisect.bisect_right(self._starts, offset) - 1)
        for extent in self._extents[first : bisect.bisect_left(self._starts, end)]:
            start, stop = max(offset, extent[0]), min(end, sum(extent))
            if start < stop:
                self._take(extent, start - extent[0], view[start - offset : stop - offset])

    def _take(self, extent: Extent, position: int, piece: memoryview) -> None:
        done, checksum = self._seen.pop(extent, (0, 0))
        if position != done:
            return
        checksum = zlib.crc32(piece, checksum)
        done += len(piece)
        if done < extent[1]:
            self._seen[extent] = done, checksum
        elif checksum != self._checksums[extent]:
            raise DamagedError(extent)
        else:
            self.compared += 1


class DamagedError(LoaderError):
    """A record is not what it was when the file was written."""

    def __init__(self, extent: Extent) -> None:
        super().__init__(
            Reason.DIGEST_MISMATCH,
            f"the {extent[1]} bytes from byte {extent[0]} on have another CRC-32 than the file"
            " states: it was damaged since it was written",
        )
        self.extent = extent


def verify_records(file: TensorFile, only: Container[Extent] | None = None) -> int:
    """Read the records and compare them; returns how many bytes that were.

    only: leave the others out, as those of tensors that are not published.
    """
    checker = Checker(file.checksums)
    read = 0
    for offset, size in sorted(file.checksums):
        if only is not None and (offset, size) not in only:
            continue
        try:
            for position in range(offset, offset + size, _CHUNK):
                checker.feed(
                    position, read_at(file.fd, position, min(_CHUNK, offset + size - position))
                )
        except DamagedError as error:
            raise LoaderError(
                error.reason, f"{file.path.name}: {_name(file, error.extent)}: {error.message}"
            ) from error
        read += size
    return read


def _name(file: TensorFile, extent: Extent) -> str:
    """The first tensor that lies there."""
    offset, size = extent
    names = (
        name
        for name, tensor in file.tensors.items()
        if offset <= tensor.offset < offset + max(1, size)
    )
    return f"tensor {next(names, '(not used)')}"
