"""Writes planned files while their source is downloaded, without a copy of the source.

The source's bytes arrive in the source's order, so the files are written in any order. One thread
for each file digests it from its beginning, as far as it is complete. The progress is recorded,
and from time to time the bytes are made durable, so that a later process can resume.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from sd_loader.bulk import write_at
from sd_loader.convert.write.fileio import reserve
from sd_loader.convert.write.files import PlannedFile, SmallFile, WeightsFile
from sd_loader.convert.write.steps import STEP_BYTES, Buffers, Findings, steps_of
from sd_loader.convert.write.steps_done import StepsDone, digest_as_done
from sd_loader.convert.write.wants import Slot, Want, Wants
from sd_loader.convert.write.writer import prepare_folder
from sd_loader.digests import blake3_of
from sd_loader.handover import FileDigest
from sd_loader.storage_errors import storage_errors
from sd_loader.tensors import TensorFile

AT_A_TIME = 6
"""Maximum number of steps in memory: the one that arrives, and those that are being written."""
WRITERS = max(2, min(4, os.cpu_count() or 1))
RECORD_SECONDS = 0.25
SYNC_SECONDS = 10.0
WIDEST = 8
"""Maximum source bytes per byte of the output: a 64-bit number may become an 8-bit one."""


class DoneRecord(Protocol):
    """A record of how many wants are done."""

    def done(self) -> int:
        """How many wants an earlier process wrote.

        Wants that a crash of the machine may have undone do not count.
        """
        ...

    def set_done(self, written: int, durable: int) -> None:
        """Record how many wants are written, and how many would survive a crash of the machine."""
        ...


class StreamedFolder:
    """A folder of files that are being written. Use it in a `with` statement.

    sources: the sparse file of the arriving source, then the complete files. keep: a descriptor for
    writing to the sparse file. Bytes that several steps need are kept there, at their positions in
    the source.
    """

    def __init__(
        self,
        out: Path,
        files: Sequence[PlannedFile],
        wants: Wants,
        sources: Sequence[TensorFile],
        keep: int,
        record: DoneRecord,
    ) -> None:
        self._wants = wants
        self._keep = keep
        self._record = record
        self._findings = Findings(sources)
        self._source = sources[0].fd
        self._sources = Buffers(WIDEST * STEP_BYTES)
        self._room = threading.Semaphore(AT_A_TIME)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._placed = [False] * len(wants.ordered)
        self.begin = self._whole = self._durable = record.done()
        self._next = self.begin
        self._raw: memoryview | None = None
        self._filled = 0
        self._closed = threading.Event()
        with ExitStack() as stack:
            prepare_folder(out, files)
            self._small = {
                file.path: _write_small(out, file) for file in files if isinstance(file, SmallFile)
            }
            weights = [file for file in files if isinstance(file, WeightsFile)]
            self._fds = [stack.enter_context(_opened(out, file)) for file in weights]
            self._done = [StepsDone(sum(1 for _ in steps_of(file))) for file in weights]
            for number in range(self.begin):
                self._mark(number)
            self._writers = stack.enter_context(ThreadPoolExecutor(WRITERS, "write"))
            digesters = stack.enter_context(ThreadPoolExecutor(max(1, len(weights)), "digest"))
            stack.callback(self._cancel)
            recorder = stack.enter_context(ThreadPoolExecutor(1, "record"))
            recorder.submit(self._keep_recording)
            stack.callback(self._closed.set)
            self._digests = {
                file.path: digesters.submit(digest_as_done, fd, file, done)
                for file, fd, done in zip(weights, self._fds, self._done, strict=True)
            }
            self._stack = stack.pop_all()

    def __enter__(self) -> StreamedFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is not None:
                with suppress(OSError):
                    self._sync()

    def feed(self, position: int, content: memoryview) -> None:
        """Take bytes of the source, in the order of the wants. Drop bytes outside the wants.

        Raises the error of an earlier write that failed.
        """
        end = position + content.nbytes
        while self._next < len(self._placed):
            want = self._wants.ordered[self._next]
            start = max(position, want.start)
            if start >= min(end, want.end):
                return  # the want's next bytes come later
            piece = content[start - position : want.end - position]
            if want.slot is None:
                self._keep_bytes(start, piece)
            else:
                self._collect(want.slot, start - want.start, piece, want)
            if start + piece.nbytes < want.end:
                return
            self._next += 1

    def finish(self) -> Mapping[str, FileDigest]:
        """Do the steps that need the whole source. Return the files' digests, ordered by path."""
        if self._next < len(self._placed):
            raise RuntimeError(f"{len(self._placed) - self._next} wants were not fed")
        for slot in self._wants.later:
            self._room.acquire()
            self._raise()
            self._writers.submit(self._place, slot, None, None)
        found = dict(self._small)
        for path, digest in self._digests.items():
            with suppress(CancelledError):  # the failure behind it is raised below
                found[path] = digest.result()
        self._raise()
        self._findings.refuse(read_missing=False)
        return dict(sorted(found.items()))

    def _keep_recording(self) -> None:
        synced = time.monotonic()
        while not self._closed.wait(RECORD_SECONDS):
            try:
                self._record.set_done(self._written(), self._durable)
                if time.monotonic() - synced >= SYNC_SECONDS:
                    self._sync()
                    synced = time.monotonic()
            except OSError as error:
                self._fail(error)
                return

    def _sync(self) -> None:
        """Sync the output files, and record how many wants are written and synced."""
        written = self._written()
        for fd in (*self._fds, self._keep):
            os.fsync(fd)
        self._durable = written
        self._record.set_done(written, written)

    def _written(self) -> int:
        """How many wants are written, up to the first that is not written."""
        with self._lock:
            while self._whole < len(self._placed) and self._placed[self._whole]:
                self._whole += 1
            return self._whole

    def _keep_bytes(self, position: int, piece: memoryview) -> None:
        with storage_errors("the bytes of the source that are kept"):
            write_at(self._keep, piece, position)
        self._findings.read(self._source, position, piece)
        if position + piece.nbytes == self._wants.ordered[self._next].end:
            self._mark(self._next)

    def _collect(self, slot: Slot, offset: int, piece: memoryview, want: Want) -> None:
        if self._raw is None:
            self._room.acquire()
            self._raise()
            self._raw, self._filled = self._sources.take(want.end - want.start), 0
        self._raw[offset : offset + piece.nbytes] = piece
        self._filled += piece.nbytes
        if self._filled == self._raw.nbytes:
            self._findings.read(self._source, want.start, self._raw)
            raw, self._raw = self._raw, None
            self._writers.submit(self._place, slot, raw, self._next)

    def _place(self, slot: Slot, raw: memoryview | None, number: int | None) -> None:
        try:
            step = slot.step
            content = (
                raw if raw is not None and step.is_copy else memoryview(bytearray(step.nbytes))
            )
            if raw is None:
                step.fill(content, self._findings)
            elif not step.is_copy:
                step.fill_from(raw, content, self._findings)
            with storage_errors(step.name):
                write_at(self._fds[slot.file], content, step.position)
            if raw is not None:
                self._sources.give_back(raw)
            if number is not None:
                self._mark(number)
            else:
                self._done[slot.file].set(slot.number)
        except BaseException as error:  # noqa: BLE001 - `feed` and `finish` raise it
            self._fail(error)
        finally:
            self._room.release()

    def _mark(self, number: int) -> None:
        """Record that a want is written."""
        slot = self._wants.ordered[number].slot
        if slot is not None:
            self._done[slot.file].set(slot.number)
        with self._lock:
            self._placed[number] = True

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._cancel()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _cancel(self) -> None:
        """Release the digests that wait for steps."""
        for done in self._done:
            done.give_up()


def _write_small(out: Path, file: SmallFile) -> FileDigest:
    with storage_errors(file.path), (out / file.path).open("wb", buffering=0) as written:
        write_at(written.fileno(), file.content, 0)
    return FileDigest(blake3_of(file.content), file.size)


@contextmanager
def _opened(out: Path, file: WeightsFile) -> Iterator[int]:
    """The open file, with its header and the bytes that an earlier process wrote into it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(file.path):
        fd = os.open(out / file.path, flags, 0o644)
        try:
            reserve(fd, file.size)
            write_at(fd, file.header, 0)
            yield fd
        finally:
            os.close(fd)
