"""Writes planned files while their source comes in: no byte of it is stored but in its place.

The source's bytes come in their own order, so places are filled in any order; a thread per file
digests it as far as it is whole. What has come in is recorded, and now and then made durable, so
that a later process goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from sd_loader.convert.write.fileio import read_into, reserve, storage_errors
from sd_loader.convert.write.files import PlannedFile, SmallFile, WeightsFile
from sd_loader.convert.write.steps import STEP_BYTES, Buffers, Findings, Step, steps_of
from sd_loader.convert.write.wants import Slot, Want, Wants
from sd_loader.convert.write.writer import WRITERS, prepare_folder
from sd_loader.formats.fileio import write_at
from sd_loader.handover import FileDigest
from sd_loader.tensors import TensorFile

AT_A_TIME = 6
"""Steps in memory: that come in, or are being written."""
DIGEST_BYTES = 2**18
RECORD_SECONDS = 0.25
SYNC_SECONDS = 10.0
WIDEST = 8
"""The most bytes of the source that a byte of the output is made of: a number of 64 bits, of 8."""


class Record(Protocol):
    """Keeps how many wants are done."""

    def done(self) -> int:
        """What an earlier process recorded and this one can rely on."""
        ...

    def set_done(self, written: int, durable: int) -> None:
        """Record how many are written, and how many would outlast a crash of the machine."""
        ...


class _Done:
    """Which steps of a file are in their places; the digest waits for them in order."""

    def __init__(self, count: int) -> None:
        self._flags = bytearray(count)
        self._changed = threading.Condition()
        self._given_up = False

    def set(self, number: int) -> None:
        """A step is done."""
        with self._changed:
            self._flags[number] = 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """No more steps will be done."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Return when a step is done; raises CancelledError where it will not be."""
        with self._changed:
            while not self._flags[number]:
                if self._given_up:
                    raise CancelledError
                self._changed.wait()


class StreamedFolder:
    """A folder of files that are being written. Use it in a `with` statement.

    sources: the file that stands for what comes in, then those that are at hand. keep: the first
    one's descriptor for writing; bytes wanted by no step go there, to their own places.
    """

    def __init__(
        self,
        out: Path,
        files: Sequence[PlannedFile],
        wants: Wants,
        sources: Sequence[TensorFile],
        keep: int,
        record: Record,
    ) -> None:
        self._wants = wants
        self._keep = keep
        self._record = record
        self._findings = Findings(sources)
        self._source = sources[0].fd
        self._sources = Buffers(WIDEST * STEP_BYTES)
        self._contents = Buffers()
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
            self._done = [_Done(sum(1 for _ in steps_of(file))) for file in weights]
            for number in range(self.begin):
                self._mark(number)
            self._writers = stack.enter_context(ThreadPoolExecutor(WRITERS, "write"))
            digesters = stack.enter_context(ThreadPoolExecutor(max(1, len(weights)), "digest"))
            stack.callback(self._cancel)
            recorder = stack.enter_context(ThreadPoolExecutor(1, "record"))
            recorder.submit(self._keep_recording)
            stack.callback(self._closed.set)
            self._digests = {
                file.path: digesters.submit(_digest, fd, file, done)
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
        """Take some of the source's bytes, in the order of the wants; what no want has is dropped.

        Raises what went wrong with those taken before.
        """
        end = position + content.nbytes
        while self._next < len(self._placed):
            want = self._wants.ordered[self._next]
            start = max(position, want.start)
            if start >= min(end, want.end):
                return  # it comes later
            piece = content[start - position : want.end - position]
            if want.slot is None:
                self._keep_bytes(start, piece)
            else:
                self._collect(want.slot, start - want.start, piece, want)
            if start + piece.nbytes < want.end:
                return
            self._next += 1

    def finish(self) -> Mapping[str, FileDigest]:
        """Do what needed all of the source, and say the files' digests, ordered by path."""
        if self._next < len(self._placed):
            raise RuntimeError(f"{len(self._placed) - self._next} wants were not fed")
        for slot in self._wants.later:
            self._room.acquire()
            self._raise()
            self._writers.submit(self._place, slot, None, None)
        found = dict(self._small)
        for path, digest in self._digests.items():
            with suppress(CancelledError):  # of a failure, which is raised below
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
        """Make durable what is in its place, and record it."""
        written = self._written()
        for fd in (*self._fds, self._keep):
            os.fsync(fd)
        self._durable = written
        self._record.set_done(written, written)

    def _written(self) -> int:
        """How many wants, from the first, are in their places."""
        with self._lock:
            while self._whole < len(self._placed) and self._placed[self._whole]:
                self._whole += 1
            return self._whole

    def _keep_bytes(self, position: int, piece: memoryview) -> None:
        with storage_errors("what the source says of itself"):
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
                step.turn(raw, content, self._findings)
            with storage_errors(step.name):
                write_at(self._fds[slot.file], content, step.position)
            if raw is not None:
                self._sources.give_back(raw)
            if number is not None:
                self._mark(number)
            else:
                self._done[slot.file].set(slot.number)
        except BaseException as error:  # noqa: BLE001 - raised where the bytes come in
            self._fail(error)
        finally:
            self._room.release()

    def _mark(self, number: int) -> None:
        """A want is in its place."""
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
        """Have nobody wait for what will not come."""
        for done in self._done:
            done.give_up()


def _write_small(out: Path, file: SmallFile) -> FileDigest:
    with storage_errors(file.path):
        (out / file.path).write_bytes(file.content)
    return FileDigest(hashlib.sha256(file.content).hexdigest(), file.size)


@contextmanager
def _opened(out: Path, file: WeightsFile) -> Iterator[int]:
    """The file with its header, and with what an earlier process put into it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(file.path):
        fd = os.open(out / file.path, flags, 0o644)
        try:
            reserve(fd, file.size)
            write_at(fd, file.header, 0)
            yield fd
        finally:
            os.close(fd)


def _digest(fd: int, file: WeightsFile, done: _Done) -> FileDigest:
    """Follow the steps in the order of the file, each when it is done."""
    digest = hashlib.sha256(file.header)
    buffer = memoryview(bytearray(DIGEST_BYTES))
    for number, step in enumerate(steps_of(file)):
        done.wait(number)
        _digest_step(fd, step, digest, buffer)
    return FileDigest(digest.hexdigest(), file.size)


def _digest_step(fd: int, step: Step, digest: hashlib._Hash, buffer: memoryview) -> None:
    position, end = step.position, step.position + step.nbytes
    while position < end:
        piece = buffer[: end - position]
        read_into(fd, piece, position)
        digest.update(piece)
        position += piece.nbytes
