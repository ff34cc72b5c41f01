"""The steps in which a file of weights is written: pieces of tensors, and what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from sd_api.reasons import Reason
from sd_loader.convert.fileio import read_into
from sd_loader.convert.plan import WeightsFile
from sd_loader.convert.views import pieces
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

if TYPE_CHECKING:
    from sd_loader.convert.cast import Array

STEP_BYTES = 2**20
"""Of the output: few enough for the processor's cache, enough to keep Python out of the way."""

OVERFLOW_LIMIT = 0
"""Finite weights that may become infinite: one is enough to spoil every image."""


@dataclass
class Overflows:
    """Counts the finite weights that became infinite, by tensor."""

    _counts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, count: int) -> None:
        """Count some more of one tensor."""
        if count:
            with self._lock:
                self._counts[name] = self._counts.get(name, 0) + count

    def refuse(self) -> None:
        """Fail if there were any."""
        total = sum(self._counts.values())
        if total > OVERFLOW_LIMIT:
            first = min(self._counts)
            raise LoaderError(
                Reason.VERIFICATION_FAILED,
                f"{total} finite weights in {len(self._counts)} tensors are too large for"
                f" spec.revision and became infinite, first in {first} ({self._counts[first]})",
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

    def fill(self, content: memoryview, overflows: Overflows) -> None:
        """Put the step's bytes into memory, read from its source."""
        if self.is_copy:
            read_into(self.source.fd, content, self.source.offset)
            return
        # numpy takes a tenth of a second to import, which a model merely copied need not pay.
        from sd_loader.convert.gather import read

        self._cast(read(self.source), content, overflows)

    def turn(self, raw: memoryview, content: memoryview, overflows: Overflows) -> None:
        """Put the step's bytes into memory, made of those of its (contiguous) source."""
        import numpy as np

        from sd_loader.convert.cast import storage_dtype

        self._cast(np.frombuffer(raw, storage_dtype(self.source.dtype)), content, overflows)

    def _cast(self, values: Array, content: memoryview, overflows: Overflows) -> None:
        import numpy as np

        from sd_loader.convert.cast import cast, storage_dtype

        out = np.frombuffer(content, storage_dtype(self.dtype))
        overflows.add(self.name, cast(values, self.source.dtype, self.dtype, out))


def steps_of(file: WeightsFile) -> Iterator[Step]:
    """All steps of a file, in the order of their places in it."""
    position = len(file.header)
    for item in file.items:
        for piece in pieces(item.source, STEP_BYTES // item.dtype.itemsize):
            step = Step(f"{file.path}: {item.name}", piece, item.dtype, position)
            yield step
            position += step.nbytes
