"""The SHA-256 of bytes that arrive in any order."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_loader.convert.write import wants
from sd_loader.convert.write.wants import Want, Wants
from sd_loader.ordered_digest import OrderedSha256

CONTENT = random.Random(0).randbytes(10_000)
SIZE = len(CONTENT)
RANGES = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: tuple(sorted(pair))),
    max_size=8,
)


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[int]:
    """The descriptor of a sparse file of SIZE bytes."""
    fd = os.open(tmp_path / "sparse", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@settings(max_examples=40, deadline=None)
@given(ranges=RANGES)
def test_digest_does_not_depend_on_the_order(ranges: list[tuple[int, int]]) -> None:
    """Bytes that come twice count once."""
    with tempfile.TemporaryFile() as file:
        digest = OrderedSha256(file.fileno(), SIZE)
        for start, end in (*ranges, (0, SIZE)):
            digest.add(start, memoryview(CONTENT)[start:end])
        assert digest.hexdigest() == hashlib.sha256(CONTENT).hexdigest()


def test_bytes_that_are_at_hand_are_digested_at_their_place(sparse: int) -> None:
    """Bytes that are already in the sparse file, such as an outline, are read from there."""
    digest = OrderedSha256(sparse, SIZE)
    for start, end in ((9_000, SIZE), (0, 100)):
        os.pwrite(sparse, CONTENT[start:end], start)
        digest.keep(start, end)
    digest.add(100, memoryview(CONTENT)[100:9_000])
    assert digest.hexdigest() == hashlib.sha256(CONTENT).hexdigest()


def test_digest_of_an_incomplete_file_is_an_error(sparse: int) -> None:
    """A wrong digest must never be reported."""
    digest = OrderedSha256(sparse, SIZE)
    digest.add(0, memoryview(CONTENT)[:-1])
    with pytest.raises(RuntimeError, match="1 bytes of the source did not come"):
        digest.hexdigest()


def wants_in(ranges: list[tuple[int, int]], early: int) -> Wants:
    """Return wants between neighbouring ends of the ranges.

    Of every second want, the first `early` ones are moved to the front.
    """
    cuts = sorted({end for pair in ranges for end in pair})
    ordered = [Want(*pair, None) for pair in pairwise(cuts)]
    first = ordered[::2][:early]
    return Wants((*first, *(want for want in ordered if want not in first)), (), len(first))


def assert_in_order(wanted: Wants, requested: list[tuple[int, int]]) -> None:
    """Assert that the requests bring each want in one piece, and all wants in their order."""
    position = 0
    for want in wanted.ordered:
        while not requested[position][0] <= want.start < want.end <= requested[position][1]:
            position += 1
        requested[position] = (want.end, requested[position][1])


@settings(max_examples=60, deadline=None)
@given(ranges=RANGES, at_hand=RANGES, early=st.integers(0, 4), gap=st.sampled_from([0, 50, 5_000]))
def test_wants_come_in_their_order(
    ranges: list[tuple[int, int]], at_hand: list[tuple[int, int]], early: int, gap: int
) -> None:
    """The requests for the whole file also cover every byte that is not at hand."""
    wanted = wants_in(ranges, early)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wants, "GAP_BYTES", gap)
        some, every = wanted.ranges(), wanted.ranges_of_all(at_hand, SIZE)
    covered = bytearray(SIZE)
    for start, end in (*every, *at_hand):
        covered[start:end] = b"\1" * (end - start)
    assert all(covered)
    assert_in_order(wanted, some)
    assert_in_order(wanted, every)
