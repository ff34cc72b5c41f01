"""Whether the records of a zip checkpoint are what they were when it was written.

Whoever reads bytes of a record adds their CRC-32, in any order and from any thread; in the end
those of a record are combined and compared. Where a record was not read whole, it is read anew.
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
"""Of a file: the first byte and the number of bytes."""

_CHUNK = 1 << 20


class Checksums:
    """The CRC-32 of what was read of one file."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._read: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, content: memoryview) -> None:
        """Take the bytes at this place of the file."""
        # isal's runs at the speed of memory, zlib's takes as long as everything else together.
        self._read[offset] = content.nbytes, isal_zlib.crc32(content)

    def compare(self, *, read_missing: bool) -> int:
        """Raise where a record has another CRC than the file states; says how many were compared.

        Records of which nothing was read do not count. read_missing: of the others, those of which
        not all was read are read from the file.
        """
        compared = 0
        begun = _begun(self._file.checksums, self._read)
        for extent in begun:
            found = self._combined(extent)
            if found is None and read_missing:
                found = _read(self._file.fd, extent)
            if found is not None:
                compared += 1
                if found != self._file.checksums[extent]:
                    raise _damaged(self._file, extent)
        return compared

    def _combined(self, extent: Extent) -> int | None:
        """The CRC of a record, from those of its pieces; None where one is missing."""
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
    """The records in which anything was read."""
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
        f"{file.path.name}: tensor {snippet(next(names, '(not used)'))}: its data of {size} bytes"
        f" at byte {offset} have another CRC-32 than the file states: it was damaged since it was"
        " written",
    )
