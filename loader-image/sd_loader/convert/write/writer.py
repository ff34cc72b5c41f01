"""Writes planned files: headers first, then piece after piece, with their digests.

Positions are known in advance, so several pieces are written at once. One thread for each file
digests its pieces in order: from the memory that they were written from, or from the output if the
kernel copied them. The memory does not grow with the size of the model.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from sd_api.reasons import Reason
from sd_api.wire import Progress, Stage
from sd_loader.bulk import write_at
from sd_loader.convert.write.fileio import reserve
from sd_loader.convert.write.files import PlannedFile, SmallFile, WeightsFile
from sd_loader.convert.write.steps import Block, Buffers, Findings, blocks_of
from sd_loader.digests import Blake3
from sd_loader.errors import LoaderError
from sd_loader.handover import FileDigest
from sd_loader.progress import Report
from sd_loader.storage_errors import storage_errors
from sd_loader.tensors import TensorFile

FILES_AT_A_TIME = 2
WRITERS = max(2, min(4, os.cpu_count() or 1))
AHEAD = 8
"""How many blocks the writers may be ahead of a file's digest. These blocks stay in memory."""
REPORT_SECONDS = 0.5


@dataclass
class _Run:
    """The state that the threads of a run share."""

    writers: Executor
    findings: Findings
    buffers: Buffers = field(default_factory=Buffers)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count


@dataclass
class _Output:
    """A file of weights that is being written."""

    fd: int

    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while bytes are written. The kernel lets one thread at a time write to a file, and the
    others spin: without this lock, SDXL took 5.5 s of kernel time instead of 3.6 s."""

    kernel_copies: bool = True
    """False once the kernel could not copy a block. The other blocks are then read and written."""


def write_folder(
    out: Path, files: Sequence[PlannedFile], report: Report, sources: Iterable[TensorFile] = ()
) -> Mapping[str, FileDigest]:
    """Write the files beneath `out`, which is empty. Return their digests, ordered by path.

    sources: open files of the weights whose checksums are compared.
    """
    total = sum(file.size for file in files)
    prepare_folder(out, files)
    largest_first = sorted(files, key=lambda file: -file.size)
    with (
        ThreadPoolExecutor(WRITERS, "write") as writers,
        ThreadPoolExecutor(FILES_AT_A_TIME, "digest") as pool,
    ):
        run = _Run(writers, Findings(sources))
        tasks = {file.path: pool.submit(_write_file, out, file, run) for file in largest_first}
        try:
            _watch(tasks.values(), run, total, report)
        finally:
            run.stop.set()
    run.findings.refuse()
    return {path: tasks[path].result() for path in sorted(tasks)}


def prepare_folder(out: Path, files: Sequence[PlannedFile]) -> None:
    """Make the folders of the files. Refuse a volume that has too little space for the files."""
    total = sum(file.size for file in files)
    free = shutil.disk_usage(out).free
    if free + sum(_allocated(out / file.path) for file in files) < total:
        raise LoaderError(
            Reason.INSUFFICIENT_STORAGE,
            f"the converted model needs {total} bytes, the volume has {free} free",
        )
    for folder in sorted({(out / file.path).parent for file in files}):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)


def _allocated(path: Path) -> int:
    """Return how many bytes a file of an earlier attempt takes on the volume."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _watch(tasks: Iterable[Future[FileDigest]], run: _Run, total: int, report: Report) -> None:
    """Report progress until all is written. Raise the first error."""
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


def _write_file(out: Path, file: PlannedFile, run: _Run) -> FileDigest:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(file.path):
        fd = os.open(out / file.path, flags, 0o644)
        try:
            start = file.content if isinstance(file, SmallFile) else file.header
            if isinstance(file, WeightsFile):
                reserve(fd, file.size)
            write_at(fd, start, 0)
            digest = Blake3(start)
            run.advance(len(start))
            if isinstance(file, WeightsFile):
                _write_tensors(_Output(fd), file, run, digest)
            return FileDigest(digest.hexdigest(), file.size)
        finally:
            os.close(fd)


def _write_tensors(output: _Output, file: WeightsFile, run: _Run, digest: Blake3) -> None:
    """Have the writers write the blocks, and digest them in order."""
    under_way: deque[tuple[Block, Future[memoryview | None]]] = deque()
    try:
        for block in blocks_of(file):
            if run.stop.is_set():
                raise InterruptedError("another file of this model could not be written")
            under_way.append((block, run.writers.submit(_write_block, output, block, run)))
            if len(under_way) > AHEAD:
                _digest(output, *under_way.popleft(), digest, run)
        while under_way:
            _digest(output, *under_way.popleft(), digest, run)
    finally:
        # Do not return while a thread may still write: the caller closes the file.
        for _, task in under_way:
            task.cancel()
        wait(task for _, task in under_way)


def _write_block(output: _Output, block: Block, run: _Run) -> memoryview | None:
    """Write a block. Return its bytes, or None if the kernel copied them from file to file."""
    if output.kernel_copies and block.is_copied:
        with output.turn:
            if block.copy(output.fd):
                return None
        output.kernel_copies = False
    content = run.buffers.take(block.nbytes)
    block.fill(content, run.findings)
    with output.turn:
        write_at(output.fd, content, block.position)
    return content


def _digest(
    output: _Output,
    block: Block,
    task: Future[memoryview | None],
    digest: Blake3,
    run: _Run,
) -> None:
    content = task.result()
    if content is None:
        content = run.buffers.take(block.nbytes)
        block.read_back(output.fd, content, run.findings)
    digest.update(content)
    run.advance(content.nbytes)
    run.buffers.give_back(content)
