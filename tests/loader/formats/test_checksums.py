"""The checksums of a zip checkpoint's records show damage."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_api.reasons import Reason
from sd_loader.errors import LoaderError
from sd_loader.formats import open_tensor_file
from sd_loader.formats.checksums import Checksums
from sd_loader.tensors import TensorFile
from tests.support.models.checkpoints import save_ckpt
from tests.support.models.conversions import convert_file
from tests.support.models.vaes import tiny as tiny_vae

TENSORS = {"a": torch.arange(700_000.0), "b": torch.ones(3), "c": torch.zeros(0)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a zip checkpoint with three tensors."""
    return save_ckpt(tmp_path / "model.ckpt", TENSORS)


def damage(path: Path, name: str, at: int = 0) -> None:
    """Flip a bit of a tensor."""
    with open_tensor_file(path) as file:
        offset = file.tensors[name].offset + at
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def read(file: TensorFile, *ranges: tuple[int, int]) -> Checksums:
    """Return the checksums of these byte ranges, or of all tensors if no range is given."""
    checksums = Checksums(file)
    whole = [(one.offset, one.offset + one.nbytes) for one in file.tensors.values()]
    for start, end in ranges or whole:
        if start < end:
            checksums.add(start, memoryview(os.pread(file.fd, end - start, start)))
    return checksums


def test_an_undamaged_file_passes(checkpoint):
    """All records that are not empty are compared."""
    with open_tensor_file(checkpoint) as file:
        assert read(file).compare(read_missing=False) == 2


@pytest.mark.parametrize("at", [0, (1 << 20) - 1, 1 << 20, 4 * 700_000 - 1])
def test_a_flipped_bit_is_found(checkpoint, at):
    """The bit may be anywhere in a tensor. The message names the tensor."""
    damage(checkpoint, "a", at)
    with (
        open_tensor_file(checkpoint) as file,
        pytest.raises(LoaderError, match=r"model\.ckpt: tensor a: .*damaged") as caught,
    ):
        read(file).compare(read_missing=False)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_records_that_are_not_read_are_not_compared(checkpoint):
    """Only the record whose bytes were read is compared, and damage to another one is not found."""
    damage(checkpoint, "a")
    with open_tensor_file(checkpoint) as file:
        small = file.tensors["b"]
        assert read(file, (small.offset, small.offset + 12)).compare(read_missing=True) == 1


def test_a_partly_read_record_is_read_again(checkpoint):
    """The comparison finds damage to bytes that were not read; with read_missing=False it skips it.

    read_missing is False for a file that is not complete on disk.
    """
    damage(checkpoint, "a", 4000)
    with open_tensor_file(checkpoint) as file:
        start = file.tensors["a"].offset
        part = read(file, (start + 8, start + 80))
        assert part.compare(read_missing=False) == 0
        with pytest.raises(LoaderError, match="damaged"):
            part.compare(read_missing=True)


def test_a_file_without_checksums_passes(tmp_path):
    """A torch file from before 1.6 has no checksums, so no record is compared."""
    path = save_ckpt(tmp_path / "model.ckpt", TENSORS, legacy=True)
    with open_tensor_file(path) as file:
        assert read(file).compare(read_missing=True) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3995), max_size=30), st.booleans(), st.randoms())
def test_pieces_may_have_any_size_and_order(tmp_path_factory, cuts, damaged, shuffler):
    """Damage is found, and an intact record passes, however the record is cut and shuffled.

    Threads of the loader read the pieces of a record in parallel.
    """
    path = save_ckpt(tmp_path_factory.mktemp("pieces") / "model.ckpt", {"a": torch.arange(999.0)})
    if damaged:
        damage(path, "a", 8)
    with open_tensor_file(path) as file:
        start = file.tensors["a"].offset
        edges = [0, *sorted(set(cuts)), 3996]
        ranges = [(start + one, start + other) for one, other in pairwise(edges)]
        shuffler.shuffle(ranges)
        checksums = read(file, *ranges)
        if damaged:
            with pytest.raises(LoaderError, match="damaged"):
                checksums.compare(read_missing=False)
        else:
            assert checksums.compare(read_missing=False) == 1


@pytest.mark.parametrize("revision", [None, "fp16"], ids=["copied", "cast"])
def test_a_damaged_checkpoint_is_not_converted(tmp_path, revision):
    """Damage is detected both when numbers are copied and when they are cast."""
    path = save_ckpt(tmp_path / "vae.ckpt", tiny_vae(torch.float32))
    fields = {"model_type": "vae", "revision": revision}
    assert convert_file(path, tmp_path / "whole", **fields).files
    damage(path, "decoder.conv_out.weight", 100)
    with pytest.raises(LoaderError, match="damaged") as caught:
        convert_file(path, tmp_path / "out", **fields)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
