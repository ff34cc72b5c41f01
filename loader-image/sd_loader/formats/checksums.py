"""Detects records of a zip checkpoint that were damaged after the checkpoint was written.

Readers of a record add its bytes in any order. At the end, the CRC-32s of the pieces are combined
and compared with the CRC-32 in the file. A record that was not read completely can be read again.
"""

from __future__ import annotations

from collections.abc import Mapping

from isal import isal_zlib

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats.fileio import read_at
from sd_loader.snippet import snippet
from sd_loader.tensors import TensorFile

Extent = tuple[int, int]
"""A range of a file: its offset and its number of bytes."""

_CHUNK = 1 << 20


class Checksums:
    """The CRC-32s of the bytes that were read from a file. Threads may share it."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._read: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, content: memoryview) -> None:
        """Add bytes that were read at this offset."""
        # isal's CRC runs at the speed of memory. zlib's would double the time of a conversion.
        self._read[offset] = content.nbytes, isal_zlib.crc32(content)

    def compare(self, *, read_missing: bool) -> int:
        """Refuse a record with another CRC than the file states. Return the number of comparisons.

        A record that was not read at all is skipped. read_missing: whether a partly read record is
        read again; otherwise it is skipped, too.
        """
        compared = 0
        begun = _begun(self._file.checksums, self._read)
        for extent in begun:
            checksum = self._combined(extent)
            if checksum is None and read_missing:
                checksum = _read(self._file.fd, extent)
            if checksum is not None:
                compared += 1
                if checksum != self._file.checksums[extent]:
                    raise _damaged(self._file, extent)
        return compared

    def _combined(self, extent: Extent) -> int | None:
        """Combine the CRC of a record from its pieces. None if a piece is missing."""
        position, end = extent[0], sum(extent)
        checksum = 0
        while position < end:
            count, piece = self._read.get(position, (0, 0))
            if not count or position + count > end:
                return None
            checksum = isal_zlib.crc32_combine(checksum, piece, count)
            position += count
        return checksum


def _begun(checksums: Mapping[Extent, int], read: Mapping[int, object]) -> list[Extent]:
    """Return the records that were read at least partly."""
    begun = []
    positions = iter(sorted(read))
    position = next(positions, None)
    for offset, size in sorted(checksums):
        while position is not None and position < offset:
            position = next(positions, None)
        if position is not None and position < offset + size:
            begun.append((offset, size))
    return begun


def _read(fd: int, extent: Extent) -> int:
    position, end = extent[0], sum(extent)
    checksum = 0
    while position < end:
        content = read_at(fd, position, min(_CHUNK, end - position))
        checksum = isal_zlib.crc32(content, checksum)
        position += len(content)
    return checksum


def _damaged(file: TensorFile, extent: Extent) -> LoaderError:
    offset, size = extent
    names = (
        name
        for name, tensor in file.tensors.items()
        if offset <= tensor.offset < offset + max(1, size)
    )
    return LoaderError(
        Reason.DIGEST_MISMATCH,
        f"{file.path.name}: tensor {snippet(next(names, '(not used)'))}: the CRC-32 of its {size}"
        f" bytes at byte {offset} differs from the one in the file: the file was damaged after it"
        " was written",
    )
