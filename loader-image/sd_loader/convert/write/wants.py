"""Determines which bytes of a source are needed, and the order of their requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sd_loader.convert.write.files import PlannedFile, WeightsFile
from sd_loader.convert.write.steps import Step, steps_of
from sd_loader.formats.outline import Range
from sd_loader.tensors import Tensor, strides_of

GAP_BYTES = 4 << 20
"""Maximum gap between two ranges of one request. The gap is downloaded as well, because another
request would take longer."""

HELD_UP_BYTES = 64 << 20
"""A want is early if at least this many bytes, and a quarter of its file or more, wait for it."""
MOST_EARLY_BYTES = 64 << 20
"""If all early wants together have more bytes, no want is requested early."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A step, with its number and that of its file."""

    file: int
    """Number of the file among those with weights."""

    number: int
    """Number of the step in the file."""

    step: Step


@dataclass(frozen=True, slots=True)
class Want:
    """A range of the source's bytes."""

    start: int
    end: int

    slot: Slot | None
    """The step that needs the bytes. None if the source's sparse file stores them instead."""


@dataclass(frozen=True)
class Wants:
    """All bytes of a source that are needed."""

    ordered: tuple[Want, ...]
    """Disjoint ranges in the order of their requests.

    Ranges that hold up a digest come first, then the others. Both are ordered by position.
    """

    later: tuple[Slot, ...]
    """Steps that are done after the download, because they need kept bytes or other files."""

    early: int = 0
    """How many of the ordered wants hold up a digest and come first."""

    @property
    def nbytes(self) -> int:
        """How many bytes are needed."""
        return sum(want.end - want.start for want in self.ordered)

    def ranges(self, begin: int = 0) -> list[Range]:
        """The ranges to request, without the first `begin` wants."""
        return _joined((want.start, want.end) for want in self.ordered[begin:])

    def skipped(self, at_hand: Sequence[Range], size: int) -> list[Range]:
        """The ranges of the source that are neither requested nor at hand already."""
        return _others([*self.ranges(), *at_hand], size)

    def ranges_of_all(self, at_hand: Sequence[Range], size: int) -> list[Range]:
        """The ranges to request so that every byte of the source is at hand in the end."""
        first = _joined((want.start, want.end) for want in self.ordered[: self.early])
        rest = [(want.start, want.end) for want in self.ordered[self.early :]]
        others = _others([*first, *rest, *at_hand], size)
        return [*first, *_joined(sorted([*rest, *others]))]


def wants_of(files: Sequence[PlannedFile], fd: int, kept: Iterable[Range] = ()) -> Wants:
    """Return the bytes that the files need of the source with the descriptor `fd`.

    kept: further ranges, which the source's sparse file stores.
    """
    wanted = [Want(start, end, None) for start, end in kept]
    later: list[Slot] = []
    for slot in _slots(files):
        source = slot.step.source
        if source.fd != fd:
            later.append(slot)
        elif source.count:
            start, end = _extent(source)
            wanted.append(Want(start, end, slot))
    ordered: list[Want] = []
    for together in _overlapping(wanted):
        first = together[0]
        is_plain = first.slot is None or first.slot.step.source.strides is None
        if len(together) == 1 and is_plain:
            ordered.append(first)
        else:
            # The elements are not consecutive, or several steps need them.
            later += [want.slot for want in together if want.slot is not None]
            ordered.append(Want(first.start, max(want.end for want in together), None))
    early = _early(ordered)
    rest = [want for want in ordered if want not in early]
    by_position = sorted(early, key=lambda want: want.start)
    return Wants((*by_position, *rest), tuple(later), len(early))


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Join ranges that follow one another closely."""
    found: list[Range] = []
    for start, end in ranges:
        if found and 0 <= start - found[-1][1] <= GAP_BYTES:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _others(ranges: Iterable[Range], size: int) -> list[Range]:
    """Return the ranges of a file of this size that lie in none of the given ones."""
    found, position = [], 0
    for start, end in sorted(ranges):
        if start > position:
            found.append((position, start))
        position = max(position, end)
    return [*found, (position, size)] if position < size else found


def _early(ordered: Sequence[Want]) -> set[Want]:
    """Return the wants that come so late in the source that much of a file's digest waits for them.

    An example is the UNet's time embedding: it is at the end of the source, and in the first third
    of its file.
    """
    early: set[Want] = set()
    for file in {want.slot.file for want in ordered if want.slot}:
        own = [(want, want.slot.step) for want in ordered if want.slot and want.slot.file == file]
        after_in_source = _after([want for want, _ in own])
        by_place = sorted(own, key=lambda pair: pair[1].position)
        after_in_file = _after([want for want, _ in by_place])
        much = max(HELD_UP_BYTES, sum(want.end - want.start for want, _ in own) // 4)
        early |= {want for want, _ in own if after_in_file[want] - after_in_source[want] >= much}
    small = sum(want.end - want.start for want in early) <= MOST_EARLY_BYTES
    return early if small else set()


def _after(wants: Sequence[Want]) -> dict[Want, int]:
    """For each want, the number of bytes of all wants after it."""
    after: dict[Want, int] = {}
    total = 0
    for want in reversed(wants):
        after[want] = total
        total += want.end - want.start
    return after


def _slots(files: Sequence[PlannedFile]) -> Iterator[Slot]:
    weights = [file for file in files if isinstance(file, WeightsFile)]
    for file_number, file in enumerate(weights):
        for number, step in enumerate(steps_of(file)):
            yield Slot(file_number, number, step)


def _extent(tensor: Tensor) -> Range:
    """The range from a tensor's first byte to its last, including bytes between its elements."""
    steps = zip(tensor.shape, strides_of(tensor), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in steps)
    return tensor.offset, tensor.offset + span * tensor.dtype.itemsize


def _overlapping(wants: Iterable[Want]) -> Iterator[list[Want]]:
    together: list[Want] = []
    end = 0
    for want in sorted(wants, key=lambda want: (want.start, want.end)):
        if together and want.start >= end:
            yield together
            together = []
        together.append(want)
        end = max(end, want.end)
    if together:
        yield together
