"""The checksums of a zip checkpoint's records are compared, whoever reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import save_ckpt
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.checksums import Checker, verify_records

TENSORS = {"a": torch.arange(700_000.0), "b": torch.ones(3), "c": torch.zeros(0)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A zip checkpoint of three tensors."""
    return save_ckpt(tmp_path / "model.ckpt", TENSORS)


def damage(path: Path, name: str, at: int = 0) -> None:
    """Flip a bit of a tensor."""
    with open_tensor_file(path) as file:
        offset = file.tensors[name].offset + at
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_whole_file_passes(checkpoint):
    """All of its numbers are read."""
    with open_tensor_file(checkpoint) as file:
        assert verify_records(file) == 4 * 700_003


@pytest.mark.parametrize("at", [0, (1 << 20) - 1, 1 << 20, 4 * 700_000 - 1])
def test_a_flipped_bit_is_found(checkpoint, at):
    """Wherever it is; the message names the tensor."""
    damage(checkpoint, "a", at)
    with (
        open_tensor_file(checkpoint) as file,
        pytest.raises(LoaderError, match=r"model\.ckpt: tensor a: .*damaged") as caught,
    ):
        verify_records(file)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_what_is_not_published_is_not_read(checkpoint):
    """A set of averages that nobody asked for costs nothing."""
    damage(checkpoint, "a")
    with open_tensor_file(checkpoint) as file:
        small = [extent for extent in file.checksums if extent[1] == 12]
        assert verify_records(file, only=small) == 12


def test_a_file_without_checksums_passes(tmp_path):
    """A torch file of before 1.6 has none."""
    path = save_ckpt(tmp_path / "model.ckpt", TENSORS, legacy=True)
    with open_tensor_file(path) as file:
        assert verify_records(file) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=30), st.booleans())
def test_pieces_of_any_size_are_compared(tmp_path_factory, sizes, damaged):
    """As a stream brings them, with whatever stands between the records."""
    path = save_ckpt(
        tmp_path_factory.mktemp("streamed") / "model.ckpt",
        {"a": torch.arange(999.0), "b": torch.ones(300)},
    )
    if damaged:
        damage(path, "b", 8)
    content = path.read_bytes()
    with open_tensor_file(path) as file:
        checker = Checker(file.checksums)
        records = len(file.checksums)
    position = 0
    try:
        for size in [*sizes, len(content)]:
            checker.feed(position, content[position : position + size])
            position += size
    except LoaderError:
        assert damaged
    else:
        assert (damaged, checker.compared) == (False, records)


def test_a_record_that_is_not_seen_whole_is_not_compared(checkpoint):
    """Nothing can be said of it."""
    with open_tensor_file(checkpoint) as file:
        checker = Checker(file.checksums)
        offset, size = max(file.checksums, key=lambda extent: extent[1])
    checker.feed(offset + 10, bytes(size - 10))
    checker.feed(offset, bytes(10))
    assert checker.compared == 0
