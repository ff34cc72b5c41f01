"""Writes planned files: headers first, then tensor after tensor, digests on the way.

Positions are known beforehand, so writers work on several tensors at once; a thread per file
digests, in order, what they have written, while it is still in the page cache. Memory is bounded
whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import Progress, Stage
from sd_api.reasons import Reason
from sd_loader.convert.fileio import copy_range, reserve, storage_errors, write_at
from sd_loader.convert.plan import PlannedFile, SmallFile, WeightsFile
from sd_loader.convert.result import FileDigest
from sd_loader.convert.views import pieces
from sd_loader.errors import LoaderError
from sd_loader.tensors import Dtype, Tensor

if TYPE_CHECKING:
    from sd_loader.progress import Report

FILES_AT_A_TIME = 2
WRITERS = max(2, min(4, os.cpu_count() or 1))
STEP = 4 * 2**20
"""Elements per step: what a writer takes on before it looks for other work."""
AHEAD = 16
"""Steps that writers may be ahead of a file's digest, which should find its bytes in memory."""
DIGEST_BUFFER = 2**18
REPORT_SECONDS = 0.5

OVERFLOW_LIMIT = 0
"""Finite weights that may become infinite: one is enough to spoil every image."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A piece of a tensor on its way to its place in a file."""

    name: str
    source: Tensor
    dtype: Dtype
    position: int

    @property
    def end(self) -> int:
        return self.position + self.source.count * self.dtype.itemsize


@dataclass
class _Run:
    """What the threads of one run share."""

    writers: Executor
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0
    overflows: dict[str, int] = field(default_factory=dict)

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count

    def overflowed(self, name: str, count: int) -> None:
        with self.lock:
            self.overflows[name] = self.overflows.get(name, 0) + count


def write_folder(
    out: Path, files: Sequence[PlannedFile], report: Report
) -> Mapping[str, FileDigest]:
    """Write the files beneath `out`, which is empty, and say their digests, ordered by path."""
    total = sum(file.size for file in files)
    _check_space(out, total)
    for folder in sorted({(out / file.path).parent for file in files}):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    largest_first = sorted(files, key=lambda file: -file.size)
    with (
        ThreadPoolExecutor(WRITERS, "write") as writers,
        ThreadPoolExecutor(FILES_AT_A_TIME, "digest") as pool,
    ):
        run = _Run(writers)
        tasks = {file.path: pool.submit(_write_file, out, file, run) for file in largest_first}
        try:
            _watch(tasks.values(), run, total, report)
        finally:
            run.stop.set()
    _refuse_overflows(run.overflows)
    return {path: tasks[path].result() for path in sorted(tasks)}


def _watch(tasks: Iterable[Future[FileDigest]], run: _Run, total: int, report: Report) -> None:
    """Report progress until all is written; raise what went wrong first."""
    pending = set(tasks)
    while pending:
        finished, pending = wait(pending, REPORT_SECONDS, FIRST_EXCEPTION)
        for task in finished:
            task.result()
        report(
            Progress(
                stage=Stage.CONVERTING,
                percent=run.done * 100 // total if total else 100,
                bytes_done=run.done,
                bytes_total=total,
            )
        )


def _check_space(out: Path, total: int) -> None:
    free = shutil.disk_usage(out).free
    if free < total:
        raise LoaderError(
            Reason.INSUFFICIENT_STORAGE,
            f"the converted model needs {total} bytes, the volume has {free} free",
        )


def _refuse_overflows(overflows: Mapping[str, int]) -> None:
    total = sum(overflows.values())
    if total > OVERFLOW_LIMIT:
        first = min(overflows)
        raise LoaderError(
            Reason.VERIFICATION_FAILED,
            f"{total} finite weights in {len(overflows)} tensors are too large for spec.revision"
            f" and became infinite, first in {first} ({overflows[first]})",
        )


def _write_file(out: Path, file: PlannedFile, run: _Run) -> FileDigest:
    # Read and write: the digest reads back what was written, so it vouches for the file itself.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(file.path):
        fd = os.open(out / file.path, flags, 0o644)
        try:
            start = file.content if isinstance(file, SmallFile) else file.header
            if isinstance(file, WeightsFile):
                reserve(fd, file.size)
            write_at(fd, start, 0)
            digest = hashlib.sha256(start)
            run.advance(len(start))
            if isinstance(file, WeightsFile):
                _write_tensors(fd, file, run, digest)
            return FileDigest(digest.hexdigest(), file.size)
        finally:
            os.close(fd)


def _write_tensors(fd: int, file: WeightsFile, run: _Run, digest: hashlib._Hash) -> None:
    """Have the writers write, a few steps ahead of the digest."""
    buffer = memoryview(bytearray(DIGEST_BUFFER))
    under_way: deque[tuple[_Step, Future[None]]] = deque()
    try:
        for step in _steps(file):
            if run.stop.is_set():
                raise InterruptedError("another file of this model could not be written")
            under_way.append((step, run.writers.submit(_write_step, fd, step, file, run)))
            if len(under_way) > AHEAD:
                _digest_next(fd, under_way, run, digest, buffer)
        while under_way:
            _digest_next(fd, under_way, run, digest, buffer)
    finally:
        # The file stays open until nobody writes to it any more.
        for _, task in under_way:
            task.cancel()
        wait([task for _, task in under_way])


def _steps(file: WeightsFile) -> Iterator[_Step]:
    position = len(file.header)
    for item in file.items:
        for piece in pieces(item.source, STEP):
            step = _Step(item.name, piece, item.dtype, position)
            yield step
            position = step.end


def _digest_next(
    fd: int,
    under_way: deque[tuple[_Step, Future[None]]],
    run: _Run,
    digest: hashlib._Hash,
    buffer: memoryview,
) -> None:
    """Wait for the oldest step, then take its bytes into the digest."""
    step, task = under_way.popleft()
    task.result()
    position = step.position
    while position < step.end:
        count = os.preadv(fd, [buffer[: step.end - position]], position)
        if count == 0:
            raise OSError(f"a file that was just written ends at byte {position}")
        digest.update(buffer[:count])
        position += count
    run.advance(step.end - step.position)


def _write_step(fd: int, step: _Step, file: WeightsFile, run: _Run) -> None:
    source = step.source
    if step.dtype is source.dtype and source.strides is None:
        copy_range(source.fd, source.offset, fd, step.position, source.nbytes)
        return
    # numpy takes a tenth of a second to import, which a model that is merely copied need not pay.
    from sd_loader.convert.cast import cast
    from sd_loader.convert.gather import read

    position = step.position
    for piece in pieces(source):
        values, overflows = cast(read(piece), source.dtype, step.dtype)
        if overflows:
            run.overflowed(f"{file.path}: {step.name}", overflows)
        write_at(fd, values.data.cast("B"), position)
        position += values.nbytes
