"""Which bytes of a source are needed, and in which order they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sd_loader.convert.write.files import PlannedFile, WeightsFile
from sd_loader.convert.write.steps import Step, steps_of
from sd_loader.convert.write.views import strides_of
from sd_loader.tensors import Tensor

GAP_BYTES = 4 << 20
"""What lies between is read along: asking anew takes longer."""

HELD_UP_BYTES = 64 << 20
"""Less is digested in no time; of a large file it must be a quarter."""
MOST_EARLY_BYTES = 64 << 20
"""Where so much would have to come first, the order of the file is another altogether."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Slot:
    """A step of a file: the file's number among those with weights, and the step's in it."""

    file: int
    number: int
    step: Step


@dataclass(frozen=True, slots=True)
class Want:
    """A range of the source's bytes: for one slot, or None, to be kept for others."""

    start: int
    end: int
    slot: Slot | None


@dataclass(frozen=True)
class Wants:
    """All that is needed of a source.

    ordered: disjoint, as they are asked for: by position, but for those that hold up a digest.
    later: steps that are done when all of it is there: they need what was kept, or other files.
    """

    ordered: tuple[Want, ...]
    later: tuple[Slot, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are needed."""
        return sum(want.end - want.start for want in self.ordered)

    def ranges(self, begin: int = 0, gap: int = GAP_BYTES) -> list[Range]:
        """The ranges to ask for, without the first `begin` wants."""
        found: list[Range] = []
        for want in self.ordered[begin:]:
            if found and 0 <= want.start - found[-1][1] <= gap:
                found[-1] = (found[-1][0], want.end)
            else:
                found.append((want.start, want.end))
        return found


def wants_of(files: Sequence[PlannedFile], fd: int, kept: Iterable[Range] = ()) -> Wants:
    """What the files need of the source that `fd` stands for; kept: ranges besides."""
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
            # Elements out of order, or needed twice.
            later += [want.slot for want in together if want.slot is not None]
            ordered.append(Want(first.start, max(want.end for want in together), None))
    early = _early(ordered)
    rest = [want for want in ordered if want not in early]
    return Wants((*sorted(early, key=lambda want: want.start), *rest), tuple(later))


def _early(ordered: Sequence[Want]) -> set[Want]:
    """Wants that come late in the source although much of their file's digest waits for them.

    Such as the UNet's time embedding: the last of its source, before two thirds of its file.
    """
    early: set[Want] = set()
    for file in {want.slot.file for want in ordered if want.slot}:
        mine = [(want, want.slot.step) for want in ordered if want.slot and want.slot.file == file]
        after_in_source = _after([want for want, _ in mine])
        by_place = sorted(mine, key=lambda pair: pair[1].position)
        after_in_file = _after([want for want, _ in by_place])
        much = max(HELD_UP_BYTES, sum(want.end - want.start for want, _ in mine) // 4)
        early |= {want for want, _ in mine if after_in_file[want] - after_in_source[want] >= much}
    small = sum(want.end - want.start for want in early) <= MOST_EARLY_BYTES
    return early if small else set()


def _after(wants: Sequence[Want]) -> dict[Want, int]:
    """The bytes of all that follow each."""
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
    """First and last byte of a tensor, wherever its elements lie between."""
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
