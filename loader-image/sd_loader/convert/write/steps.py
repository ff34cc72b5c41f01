"""The steps in which a file of weights is written: pieces of tensors, read and cast."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from sd_api.reasons import Reason
from sd_loader.convert.write.fileio import read_into
from sd_loader.convert.write.files import WeightsFile
from sd_loader.errors import LoaderError
from sd_loader.formats.checksums import Checksums
from sd_loader.tensors import Dtype, Tensor, TensorFile, pieces, rows, view

if TYPE_CHECKING:
    from sd_loader.convert.write.cast import Array

STEP_BYTES = 2**20
"""Size of a window of the output: it fits the processor's cache, and needs few steps in Python."""

OVERFLOW_LIMIT = 0
"""Maximum number of finite weights that become infinite. A single one spoils every image."""


class Findings:
    """Problems that are found while weights are written. Threads may share the object.

    sources: the open files that the weights come from.
    """

    def __init__(self, sources: Iterable[TensorFile] = ()) -> None:
        self._overflows: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._checksums = {file.fd: Checksums(file) for file in sources if file.checksums}

    def overflowed(self, name: str, count: int) -> None:
        """Record how many finite weights of a tensor became infinite."""
        if count:
            with self._lock:
                self._overflows[name] += count

    def read(self, fd: int, offset: int, content: memoryview) -> None:
        """Record bytes that were read from a source."""
        if fd in self._checksums:
            self._checksums[fd].add(offset, content)

    def refuse(self, *, read_missing: bool = True) -> None:
        """Raise LoaderError if there is a problem. read_missing: see Checksums.compare."""
        for checksums in self._checksums.values():
            checksums.compare(read_missing=read_missing)
        total = self._overflows.total()
        if total > OVERFLOW_LIMIT:
            first = min(self._overflows)
            raise LoaderError(
                Reason.VERIFICATION_FAILED,
                f"{total} finite weights in {len(self._overflows)} tensors are too large for"
                f" spec.revision and became infinite, first in {first} ({self._overflows[first]})",
            )


class Buffers:
    """Reusable buffers. New memory is slow, because the kernel clears it first."""

    def __init__(self, size: int = STEP_BYTES) -> None:
        self._size = size
        self._free: SimpleQueue[bytearray] = SimpleQueue()

    def take(self, count: int) -> memoryview:
        """Take a buffer of `count` bytes, at most the size that all buffers have."""
        try:
            buffer = self._free.get_nowait()
        except Empty:
            buffer = bytearray(self._size)
        return memoryview(buffer)[:count]

    def give_back(self, taken: memoryview) -> None:
        """Return a buffer that is no longer used."""
        if isinstance(taken.obj, bytearray):
            self._free.put(taken.obj)


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of a tensor, and its place in a file."""

    name: str
    """Names of file and tensor, for messages."""

    source: Tensor

    dtype: Dtype
    """Type in the file."""

    position: int
    """Position of its first byte in the file."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.source.count * self.dtype.itemsize

    @property
    def is_copy(self) -> bool:
        """Whether the file has the same bytes as the source, in the same order."""
        source = self.source
        return self.dtype is source.dtype and source.strides is None and source.scale is None

    def fill(self, content: memoryview, findings: Findings) -> None:
        """Read the step's source into memory, and convert it to the file's type."""
        source = self.source
        if self.is_copy:
            read_into(source.fd, content, source.offset)
            findings.read(source.fd, source.offset, content)
            return
        # Imported here: this import takes a tenth of a second, and a copied model does not need it.
        from sd_loader.convert.write.strided_read import read_view

        values = read_view(source)
        if source.strides is None:
            findings.read(source.fd, source.offset, values.data.cast("B"))
        self._cast(values, content, findings)

    def fill_from(self, raw: memoryview, content: memoryview, findings: Findings) -> None:
        """Like `fill`, from bytes of the (contiguous) source that are in memory already."""
        # Imported here, as in `fill`.
        import numpy as np

        from sd_loader.convert.write.cast import storage_dtype

        self._cast(np.frombuffer(raw, storage_dtype(self.source.dtype)), content, findings)

    def _cast(self, values: Array, content: memoryview, findings: Findings) -> None:
        # Imported here, as in `fill`.
        import numpy as np

        from sd_loader.convert.write.cast import cast, storage_dtype

        out = np.frombuffer(content, storage_dtype(self.dtype))
        source = self.source
        count = cast(values, source.dtype, self.dtype, out, source.scale)
        findings.overflowed(self.name, count)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive steps that are written together. They usually fill one window of the file."""

    steps: tuple[Step, ...]

    @property
    def position(self) -> int:
        """Position of its first byte in the file."""
        return self.steps[0].position

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(step.nbytes for step in self.steps)

    def fill(self, content: memoryview, findings: Findings) -> None:
        """Read the block's sources, and put its bytes into memory."""
        for step in self.steps:
            start = step.position - self.position
            step.fill(content[start : start + step.nbytes], findings)


def blocks_of(file: WeightsFile) -> Iterator[Block]:
    """The blocks of a file after its header, in order."""
    steps: list[Step] = []
    size = 0
    for step in steps_of(file):
        is_new = steps and step.position // STEP_BYTES != steps[0].position // STEP_BYTES
        if is_new or size + step.nbytes > STEP_BYTES:
            yield Block(tuple(steps))
            steps, size = [], 0
        steps.append(step)
        size += step.nbytes
    if steps:
        yield Block(tuple(steps))


def steps_of(file: WeightsFile) -> Iterator[Step]:
    """The steps of a file, in the order of their positions."""
    position = len(file.header)
    for item in file.items:
        for part in item.source.parts:
            for piece in _cut(part, item.dtype.itemsize, position):
                step = Step(f"{file.path}: {item.name}", piece, item.dtype, position)
                yield step
                position += step.nbytes


def _cut(source: Tensor, itemsize: int, position: int) -> Iterator[Tensor]:
    """Cut a tensor into pieces that end where windows of the file end.

    Otherwise two threads would write to one page, and wait for each other.
    """
    if source.strides is not None:
        yield from pieces(source, STEP_BYTES // itemsize)
        return
    flat = view(source, (source.count,), (1,))
    start = 0
    while start < source.count:
        room = (STEP_BYTES - position % STEP_BYTES) // itemsize or 1
        stop = min(source.count, start + room)
        yield rows(flat, start, stop)
        position += (stop - start) * itemsize
        start = stop
