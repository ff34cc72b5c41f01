"""Writes planned files: headers first, then block after block, with their digests.

One thread reads, casts and writes; another digests the blocks from the same memory. The memory
does not grow with the size of the model.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from sd_api.reasons import Reason
from sd_api.wire import Progress, Stage
from sd_loader.bulk import write_at
from sd_loader.convert.write.fileio import reserve
from sd_loader.convert.write.files import PlannedFile, SmallFile, WeightsFile
from sd_loader.convert.write.steps import Buffers, Findings, blocks_of
from sd_loader.digests import Blake3
from sd_loader.errors import LoaderError
from sd_loader.handover import FileDigest
from sd_loader.progress import Report
from sd_loader.storage_errors import storage_errors
from sd_loader.tensors import TensorFile

AHEAD = 8
"""How many blocks may be written before they are digested. These blocks stay in memory."""


def write_folder(
    out: Path, files: Sequence[PlannedFile], report: Report, sources: Iterable[TensorFile] = ()
) -> Mapping[str, FileDigest]:
    """Write the files beneath `out`, which is empty. Return their digests, ordered by path.

    sources: open files of the weights whose checksums are compared.
    """
    prepare_folder(out, files)
    findings = Findings(sources)
    with ThreadPoolExecutor(1, "digest") as digester:
        writer = _Writer(digester, findings, sum(file.size for file in files), report)
        digests = {file.path: writer.write(out / file.path, file) for file in files}
    findings.refuse()
    return dict(sorted(digests.items()))


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


class _Writer:
    """Writes one file after another, and digests their blocks in another thread."""

    def __init__(self, digester: Executor, findings: Findings, total: int, report: Report) -> None:
        self._digester = digester
        self._findings = findings
        self._total = total
        self._report = report
        self._done = 0
        self._buffers = Buffers()
        self._under_way: deque[tuple[memoryview, Future[Blake3]]] = deque()

    def write(self, path: Path, file: PlannedFile) -> FileDigest:
        """Write a new file, and return its digest."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        start = file.content if isinstance(file, SmallFile) else file.header
        with storage_errors(file.path):
            fd = os.open(path, flags, 0o644)
            try:
                if isinstance(file, WeightsFile):
                    reserve(fd, file.size)
                write_at(fd, start, 0)
                digest = Blake3(start)
                self._advance(len(start))
                if isinstance(file, WeightsFile):
                    self._write_tensors(fd, file, digest)
            finally:
                os.close(fd)
        return FileDigest(digest.hexdigest(), file.size)

    def _write_tensors(self, fd: int, file: WeightsFile, digest: Blake3) -> None:
        for block in blocks_of(file):
            content = self._buffers.take(block.nbytes)
            block.fill(content, self._findings)
            write_at(fd, content, block.position)
            self._under_way.append((content, self._digester.submit(digest.update, content)))
            if len(self._under_way) > AHEAD:
                self._finish_first()
        while self._under_way:
            self._finish_first()

    def _finish_first(self) -> None:
        """Wait until the first block that is under way is digested."""
        content, digested = self._under_way.popleft()
        digested.result()
        self._advance(content.nbytes)
        self._buffers.give_back(content)

    def _advance(self, count: int) -> None:
        self._done += count
        progress = Progress(stage=Stage.CONVERTING, bytes_done=self._done, bytes_total=self._total)
        self._report(progress)
