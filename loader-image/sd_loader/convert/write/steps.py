"""The steps in which a file of weights is written: pieces of tensors, and what becomes of them."""

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
from sd_loader.convert.write.views import pieces, rows, view
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor, TensorFile

if TYPE_CHECKING:
    from sd_loader.convert.write.cast import Array
    from sd_loader.formats.checksums import Checksums

STEP_BYTES = 2**20
"""A window of the output: small enough for the processor's cache, and for few steps in Python."""

OVERFLOW_LIMIT = 0
"""Finite weights that may become infinite: one is enough to spoil every image."""


class Findings:
    """What is found out about the weights while they are written. Threads share it.

    sources: the open files that they come from.
    """

    def __init__(self, sources: Iterable[TensorFile] = ()) -> None:
        self._overflows: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._checksums: dict[int, Checksums] = {}
        with_checksums = [file for file in sources if file.checksums]
        if with_checksums:
            from sd_loader.formats.checksums import Checksums

            self._checksums = {file.fd: Checksums(file) for file in with_checksums}

    def overflowed(self, name: str, count: int) -> None:
        """So many finite weights of a tensor became infinite."""
        if count:
            with self._lock:
                self._overflows[name] += count

    def read(self, fd: int, offset: int, content: memoryview) -> None:
        """These bytes were read from a source."""
        if fd in self._checksums:
            self._checksums[fd].add(offset, content)

    def refuse(self, *, read_missing: bool = True) -> None:
        """Fail if anything is wrong; read_missing: see Checksums.compare."""
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
    """Memory that steps use in turn: the kernel's clearing of fresh memory costs more than most."""

    def __init__(self, size: int = STEP_BYTES) -> None:
        self._size = size
        self._free: SimpleQueue[bytearray] = SimpleQueue()

    def take(self, count: int) -> memoryview:
        """Memory of so many bytes, at most the size of a buffer."""
        try:
            buffer = self._free.get_nowait()
        except Empty:
            buffer = bytearray(self._size)
        return memoryview(buffer)[:count]

    def give_back(self, taken: memoryview) -> None:
        """What was taken is used no longer."""
        if isinstance(taken.obj, bytearray):
            self._free.put(taken.obj)


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of a tensor on its way to its place in a file.

    name: of file and tensor, for messages. position: of its first byte in the file.
    """

    name: str
    source: Tensor
    dtype: Dtype
    position: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.source.count * self.dtype.itemsize

    @property
    def is_copy(self) -> bool:
        """Whether the bytes in the file are those of the source, one after another."""
        return self.dtype is self.source.dtype and self.source.strides is None

    def fill(self, content: memoryview, findings: Findings) -> None:
        """Put the step's bytes into memory, read from its source."""
        source = self.source
        if self.is_copy:
            read_into(source.fd, content, source.offset)
            findings.read(source.fd, source.offset, content)
            return
        # numpy takes a tenth of a second to import, which a model merely copied need not pay.
        from sd_loader.convert.write.strided_read import read

        values = read(source)
        if source.strides is None:
            findings.read(source.fd, source.offset, values.data.cast("B"))
        self._cast(values, content, findings)

    def turn(self, raw: memoryview, content: memoryview, findings: Findings) -> None:
        """Put the step's bytes into memory, made of those of its (contiguous) source."""
        import numpy as np

        from sd_loader.convert.write.cast import storage_dtype

        self._cast(np.frombuffer(raw, storage_dtype(self.source.dtype)), content, findings)

    def _cast(self, values: Array, content: memoryview, findings: Findings) -> None:
        import numpy as np

        from sd_loader.convert.write.cast import cast, storage_dtype

        out = np.frombuffer(content, storage_dtype(self.dtype))
        findings.overflowed(self.name, cast(values, self.source.dtype, self.dtype, out))


@dataclass(frozen=True, slots=True)
class Block:
    """Steps that lie one after another, written at once: as a rule a window of the file."""

    steps: tuple[Step, ...]

    @property
    def position(self) -> int:
        """Of its first byte in the file."""
        return self.steps[0].position

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(step.nbytes for step in self.steps)

    def fill(self, content: memoryview, findings: Findings) -> None:
        """Put the block's bytes into memory, read from its sources."""
        for step in self.steps:
            start = step.position - self.position
            step.fill(content[start : start + step.nbytes], findings)


def blocks_of(file: WeightsFile) -> Iterator[Block]:
    """All of a file after its header, in order."""
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
    """All steps of a file, in the order of their places in it."""
    position = len(file.header)
    for item in file.items:
        for piece in _cut(item.source, item.dtype.itemsize, position):
            step = Step(f"{file.path}: {item.name}", piece, item.dtype, position)
            yield step
            position += step.nbytes


def _cut(source: Tensor, itemsize: int, position: int) -> Iterator[Tensor]:
    """The tensor in pieces that end where windows of the file do.

    Two threads that write on the two sides of a page would wait for each other.
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
