"""Digests a file from its beginning, while its steps are done in any order."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

from sd_loader.convert.write.fileio import read_into
from sd_loader.convert.write.files import WeightsFile
from sd_loader.convert.write.steps import Step, steps_of
from sd_loader.digests import Blake3
from sd_loader.handover import FileDigest

_BUFFER_BYTES = 2**18


class StepsDone:
    """Which steps of a file are done. The digest waits for each step in the order of the file."""

    def __init__(self, count: int) -> None:
        self._flags = bytearray(count)
        self._changed = threading.Condition()
        self._given_up = False

    def set(self, number: int) -> None:
        """Record that a step is done."""
        with self._changed:
            self._flags[number] = 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """Record that no more steps will be done."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        """Wait until a step is done. Raise CancelledError after `give_up`."""
        with self._changed:
            while not self._flags[number]:
                if self._given_up:
                    raise CancelledError
                self._changed.wait()


def digest_as_done(fd: int, file: WeightsFile, done: StepsDone) -> FileDigest:
    """Digest a file's steps in the order of the file, each as soon as it is done."""
    digest = Blake3(file.header)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for number, step in enumerate(steps_of(file)):
        done.wait(number)
        _digest_step(fd, step, digest, buffer)
    return FileDigest(digest.hexdigest(), file.size)


def _digest_step(fd: int, step: Step, digest: Blake3, buffer: memoryview) -> None:
    position, end = step.position, step.position + step.nbytes
    while position < end:
        piece = buffer[: end - position]
        read_into(fd, piece, position)
        digest.update(piece)
        position += piece.nbytes
